"""The surrogate of a model that is trained with noise inside, against what the engine sampled by."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from llmrl.batch import Loss
from llmrl.config import AboveZero, NotNegative
from llmrl.objectives.policy import clipped_surrogate


def alp(
    logprobs: Tensor,
    rollout_logprobs: Tensor,
    advantages: Tensor,
    loss_mask: Tensor,
    *,
    level: Literal["token", "sequence", "geometric"] = "sequence",
    clip_low: NotNegative = 0.2,
    clip_high: NotNegative = 0.28,
    dual_clip: AboveZero | None = 3.0,
) -> Loss:
    """PPO's clip on the ratio of the perturbed policy to the engine's own log-probabilities (ALP, arXiv:2603.19470).

    token: r_t = exp(logprobs - rollout_logprobs). sequence: exp of the detached sum of those over the answer, with the
    gradient of the token's own log-probability; geometric: of their mean. [B,T] each. One ratio covers the noise, the
    drift and the engine's error: no other importance weight belongs beside it.
    """
    logprobs, rollout_logprobs = (torch.where(loss_mask, x, 0.0) for x in (logprobs, rollout_logprobs))
    change = logprobs - rollout_logprobs
    if level != "token":
        total = change.detach().sum(1, keepdim=True)
        if level == "geometric":
            total = total / loss_mask.sum(1, keepdim=True).clamp(min=1)
        change = total + logprobs - logprobs.detach()
    return clipped_surrogate(
        change,
        torch.zeros_like(change),
        advantages,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
    )
