"""Linear systems whose matrix is known by its products alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], target: Tensor, *, iterations: int = 10, tolerance: float = 1e-10
) -> Tensor:
    """x [n] with product(x) near target [n], for a symmetric positive matrix (Hestenes and Stiefel, 1952).

    Stops when the squared residual is below `tolerance`, or where a direction has no positive curvature: rounding has
    eaten it. Exact after n iterations, up to rounding.
    """
    x = torch.zeros_like(target)
    residual = direction = target
    size = residual @ residual
    for _ in range(iterations):
        if size < tolerance:
            break
        image = product(direction)
        curvature = direction @ image
        if not curvature > 0:
            break
        rate = size / curvature
        x = x + rate * direction
        residual = residual - rate * image
        size, before = residual @ residual, size
        direction = residual + size / before * direction
    return x
