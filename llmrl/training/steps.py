"""How a gradient comes about and what becomes of it, where it stands in each parameter's `grad`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from llmrl.clock import span
from llmrl.policy.model import Policy
from llmrl.policy.sharding import full


class Steps:
    """Those of an optimizer: one process, DDP or FSDP2. `llmrl.policy.zero.Zero` does the same by DeepSpeed's engine.

    parameters: those that the optimizer moves. max_norm: gradients are clipped to.
    """

    def __init__(
        self, policy: Policy, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], max_norm: float
    ):
        self.policy, self.optimizer, self.parameters, self.max_norm = policy, optimizer, parameters, max_norm
        # whether a gradient that was begun can be begun anew: inside a spread model's passes the others wait for this one
        self.forgets = not policy.sharding.spread

    def sharing(self, last: bool) -> contextlib.AbstractContextManager:
        """Around a micro-batch's passes: after the last one of a step gradients are the mean over processes."""
        wrapped = self.policy.wrapped
        return (
            wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) and not last else contextlib.nullcontext()
        )

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradient."""
        loss.backward()

    def step(self) -> float:
        """Clip the gradient, move the parameters, forget the gradient; its norm. Where that is not finite nothing moves."""
        for p in self.parameters:
            if p.grad is None:  # nothing was forwarded: an exact zero, so that the optimizer's moments still decay
                p.grad = torch.zeros_like(p)
        norm = float(full(nn.utils.clip_grad_norm_(self.parameters, self.max_norm)))
        if norm < float("inf"):
            with span("optimizer"):
                self.optimizer.step()
        self.zero()
        return norm

    def zero(self) -> None:
        """Forget the gradient, also that of parameters which this stage does not train."""
        self.policy.module.zero_grad(set_to_none=True)
