"""PPO with two old policies: the one to stay near, and the one that sampled."""

from __future__ import annotations

import torch
from torch import Tensor

from llmrl.batch import Loss
from llmrl.config import AboveZero, NotNegative
from llmrl.objectives.policy import clipped_surrogate
from llmrl.ops.ratio import log_ratio


def decoupled_ppo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    rollout_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: NotNegative = 0.2,
    clip_high: NotNegative = 0.2,
    cap: AboveZero | None = None,
) -> Loss:
    """w · clipped surrogate, w = exp(old_logprobs - rollout_logprobs) (AReaL, arXiv:2505.24298; arXiv:2110.00641).

    [B,T]. It clips around the policy that the updates began with, and weights from the sampler to that policy. Tokens
    with w > cap get 0 and stay in the divisor; 5 is common.
    """
    loss = clipped_surrogate(logprobs, old_logprobs, advantages, clip_low=clip_low, clip_high=clip_high)
    weight = log_ratio(old_logprobs, rollout_logprobs).exp()
    beyond = weight > (torch.inf if cap is None else cap)
    stats = loss.stats | {"correction/weight": weight, "correction/dropped_fraction": beyond}
    return Loss(torch.where(beyond, 0.0, weight) * loss.values, stats=stats)
