"""Products with a matrix by oneDNN, where torch would take another library.

On CPUs torch multiplies fp32 by MKL, which keeps to narrow instructions on processors of other makers than its own: on an
AMD EPYC it reaches 90 GFLOP/s a core and oneDNN 200, forward and backward, in the same precision.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """What `torch.nn.functional.linear` gives, differentiable any number of times: x [...,i], weight [o,i], bias [o]."""
    if not faster(x, weight):
        return nn.functional.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias) if torch.is_grad_enabled() else _product(x, weight, bias)


def install(model: nn.Module) -> None:
    """Let the linear layers of a model multiply by `linear`, subclasses of nn.Linear left as they are."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.forward = partial(_forward, module)


def installed(layer: nn.Linear) -> bool:
    """Whether the layer multiplies by `linear`."""
    return getattr(layer.forward, "func", None) is _forward


def _forward(self: nn.Linear, x: Tensor) -> Tensor:
    return linear(x, self.weight, self.bias)


def faster(x: Tensor, weight: Tensor) -> bool:
    """Whether these are for oneDNN: something of plain fp32 on a CPU."""
    return (
        x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0 < weight.numel()
        and type(x) is Tensor
        and type(weight) in (Tensor, nn.Parameter)
        and not torch.is_autocast_enabled("cpu")
        and works()
    )


@cache
def works() -> bool:
    """Whether this torch has the operator, which is a private one, and it multiplies right."""
    x, weight = torch.linspace(-1, 1, 15).view(3, 5), torch.linspace(0, 1, 10).view(2, 5)
    try:
        return torch.allclose(_product(x, weight, None), x @ weight.t(), atol=1e-5)
    except (AttributeError, RuntimeError, TypeError):
        return False


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])  # also of a single vector
        return (
            linear(grad, weight.t()) if to_x else None,
            linear(rows.t(), x.reshape(-1, x.shape[-1]).t()) if to_weight else None,
            rows.sum(0) if to_bias else None,
        )
