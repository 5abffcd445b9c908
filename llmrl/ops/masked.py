"""Sums, means and whitening over what a mask counts. What stands under the mask never matters, NaN included."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_sum(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of x where mask is True."""
    kept = torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x where mask is True; 0 when nothing counts."""
    return masked_sum(x, mask) / mask.sum().clamp(min=1)


def row_mean(x: Tensor, mask: Tensor) -> Tensor:
    """[B]: the mean of each row of x [B,T] where mask is True; 0 for a row where nothing counts."""
    return masked_sum(x, mask, 1) / mask.sum(1).clamp(min=1)


def whiten(x: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    """(x - mean) / sqrt(var + eps) over the counted entries, variance with n-1; 0 outside, and 0 for fewer than two."""
    count = mask.sum()
    if count < 2:
        return torch.zeros_like(x)
    mean = masked_mean(x, mask)
    variance = masked_sum((x - mean) ** 2, mask) / (count - 1)
    return torch.where(mask, (x - mean) / (variance + eps).sqrt(), torch.zeros_like(x))


def last_counted(mask: Tensor) -> Tensor:
    """[B,T] bool, True at the last counted position of each row; all False for an empty row."""
    after = mask.flip(1).cumsum(1).flip(1)
    return mask & (after == 1)
