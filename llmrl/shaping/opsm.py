"""Leaving out answers with negative credit that the policy would hardly give any more."""

from __future__ import annotations

from torch import Tensor

from llmrl.ops.masked import row_mean


def opsm(
    logprobs: Tensor, rollout_logprobs: Tensor, advantages: Tensor, loss_mask: Tensor, *, threshold: float = 0.5
) -> dict[str, Tensor]:
    """weights [B,T]: 0 where A < 0 and the answer's mean of rollout_logprobs - logprobs is above the threshold.

    Off-policy sequence masking (DeepSeek-V3.2, arXiv:2512.02556, eq. 9), which multiplies the loss and leaves its
    divisor alone: so weights and no mask. Runs before each optimizer mini-batch. slime's threshold is 1e-4.
    """
    drifted = row_mean(rollout_logprobs - logprobs, loss_mask) > threshold
    return {"weights": ((advantages >= 0) | ~drifted[:, None]).to(logprobs.dtype)}
