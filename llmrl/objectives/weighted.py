"""Policy gradients under a detached weight: every token keeps its gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from llmrl.batch import Loss
from llmrl.config import AboveZero, NotNegative
from llmrl.ops.masked import masked_sum
from llmrl.ops.ratio import EXPONENT_LIMIT, log_ratio

SMALLEST_WEIGHT = math.log(1e-8)


def cispo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    ratio_min: NotNegative = 0.0,
    ratio_max: AboveZero = 5.0,
) -> Loss:
    """-sg[clip(r, ratio_min, ratio_max)] A logprobs, [B,T] (MiniMax-M1, arXiv:2506.13585, eq. 4 and 5).

    Both bounds are absolute ratios, as in TRL, whose epsilon_high is ratio_max; verl and slime write 1 - eps and 1 + eps.
    """
    return _bounded(log_ratio(logprobs, old_logprobs), logprobs, advantages, ratio_min, ratio_max)


def cispo_rollout(
    logprobs: Tensor,
    rollout_logprobs: Tensor,
    advantages: Tensor,
    *,
    ratio_min: NotNegative = 0.0,
    ratio_max: AboveZero = 5.0,
) -> Loss:
    """`cispo` with the ratio to the sampler itself, drift and engine's error in one (ScaleRL, arXiv:2510.13786)."""
    return _bounded(log_ratio(logprobs, rollout_logprobs), logprobs, advantages, ratio_min, ratio_max)


def vespo(
    logprobs: Tensor,
    rollout_logprobs: Tensor,
    advantages: Tensor,
    loss_mask: Tensor,
    *,
    power_positive: float = 2.0,
    decay_positive: float = 3.0,
    power_negative: float = 3.0,
    decay_negative: float = 2.0,
) -> Loss:
    """-sg[phi(w)] A logprobs, phi(w) = w^k exp(lambda (1 - w)) (arXiv:2602.10693); k, lambda by the credit's sign.

    [B,T]; k is the power, lambda the decay, w the whole answer's probability ratio to the sampler. TRL has the ratio to
    the old policy, times that of the old policy to the sampler where it samples with vLLM, truncated at each token.
    """
    total = masked_sum(log_ratio(logprobs, rollout_logprobs), loss_mask, 1).detach()
    log_weight = total.clamp(SMALLEST_WEIGHT, EXPONENT_LIMIT)[:, None]
    praised = advantages >= 0
    power = torch.where(praised, power_positive, power_negative)
    decay = torch.where(praised, decay_positive, decay_negative)
    phi = (decay + power * log_weight - decay * log_weight.exp()).exp()
    return Loss(-phi * advantages * logprobs, stats={"ratio/phi": phi})


def _bounded(change: Tensor, logprobs: Tensor, advantages: Tensor, ratio_min: float, ratio_max: float) -> Loss:
    ratio = change.exp().detach()
    stats = {"ratio/clip_fraction": (ratio < ratio_min) | (ratio > ratio_max)}
    return Loss(-ratio.clamp(ratio_min, ratio_max) * advantages * logprobs, stats=stats)
