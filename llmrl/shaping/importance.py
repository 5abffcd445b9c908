"""Corrections for an engine whose probabilities are not the trainer's, from exp(old_logprobs - rollout_logprobs).

Weights multiply the loss after any clipping and leave its divisor alone; rejection takes tokens out of both. All [B,T].
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from llmrl.ops import kl
from llmrl.ops.masked import masked_sum, row_mean
from llmrl.ops.ratio import EXPONENT_LIMIT, log_ratio


def importance_weights(
    old_logprobs: Tensor,
    rollout_logprobs: Tensor,
    loss_mask: Tensor,
    *,
    level: Literal["token", "sequence", "geometric"] = "token",
    mode: Literal["truncate", "mask", "clip"] = "truncate",
    high: float = 2.0,
    low: float | None = None,
    normalize: bool = False,
) -> dict[str, Tensor]:
    """weights [B,T]: the ratio of a token, of the answer (product) or its geometric mean, bounded by `low` and `high`.

    truncate: to within the bounds, low is 0 (TIS; Yao et al. 2025, "Your efficient RL framework secretly brings you
    off-policy RL training"). mask: 0 outside the bounds (MIS). clip: as truncate, but low is 1 / high (slime).
    normalize: divided by their mean over tokens, or over answers where each has one weight.
    """
    change = torch.where(loss_mask, log_ratio(old_logprobs, rollout_logprobs), 0.0)
    if level == "sequence":
        change = change.sum(1, keepdim=True).clamp(-EXPONENT_LIMIT, EXPONENT_LIMIT)
    elif level == "geometric":
        change = row_mean(change, loss_mask)[:, None]
    ratio = change.exp()
    floor = low if low is not None else 1 / high if mode == "clip" else 0.0
    if mode == "mask":
        ratio = torch.where((ratio >= floor) & (ratio <= high), ratio, 0.0)
    else:
        ratio = ratio.clamp(floor, high)
    if normalize:
        counted = loss_mask if level == "token" else loss_mask.any(1, keepdim=True)
        mean = masked_sum(ratio, counted) / counted.sum().clamp(min=1)
        ratio = torch.where(mean > 0, ratio / mean, ratio)
    return {"weights": ratio.expand(loss_mask.shape)}


def icepop(
    old_logprobs: Tensor, rollout_logprobs: Tensor, loss_mask: Tensor, *, low: float = 0.5, high: float = 5.0
) -> dict[str, Tensor]:
    """weights [B,T]: the token's ratio between the bounds, 0 outside (IcePop, Ring-1T, arXiv:2510.18855)."""
    return importance_weights(old_logprobs, rollout_logprobs, loss_mask, mode="mask", low=low, high=high)


def rejection_mask(
    old_logprobs: Tensor,
    rollout_logprobs: Tensor,
    loss_mask: Tensor,
    *,
    level: Literal["token", "sequence_sum", "sequence_mean", "sequence_max"] = "sequence_mean",
    estimator: Literal["k1", "k2", "k3"] = "k1",
    low: float | None = 0.9,
    high: float = 1.1,
    veto: float | None = None,
) -> dict[str, Tensor]:
    """loss_mask [B,T] without the tokens, or the answers, whose statistic lies outside the bounds.

    k1: the log ratio, and the bounds are ratios; with sequence_mean the geometric mean of an answer. k2 = log² / 2,
    k3 = ratio - 1 - log: estimates of KL(sampler || trainer), of which `high` is the most in nats. sequence_max: one
    token outside is enough. veto: a token whose ratio is below it takes its answer along. Of several such parts, each
    sees what the one before has left. verl compares -log ratio, so that its unequal bounds act on the inverse.
    """
    change = torch.where(loss_mask, log_ratio(old_logprobs, rollout_logprobs), 0.0)
    if estimator == "k1":
        statistic, least = change, -math.inf if low is None else math.log(low)
        most = math.log(high)
    else:
        statistic, least, most = getattr(kl, estimator)(-change, torch.zeros_like(change)), -math.inf, high
    if level == "sequence_sum":
        statistic = statistic.sum(1, keepdim=True)
    elif level == "sequence_mean":
        statistic = row_mean(statistic, loss_mask)[:, None]
    inside = (statistic >= least) & (statistic <= most)
    if level == "sequence_max":
        inside = (inside | ~loss_mask).all(1, keepdim=True)
    if veto is not None:
        inside = inside & ~(loss_mask & (change < math.log(veto))).any(1, keepdim=True)
    return {"loss_mask": loss_mask & inside}


def ratio_to_sampler(rollout_logprobs: Tensor, loss_mask: Tensor) -> dict[str, Tensor]:
    """old_logprobs [B,T]: the engine's own, so that ratios and clips of the loss are to the policy that wrote the answers.

    PPO's old policy as the paper has it (arXiv:1707.06347), also where answers are of older weights; whatever engine and
    trainer disagree on is in the ratio. Stands last: parts behind it see these as old_logprobs.
    """
    return {"old_logprobs": torch.where(loss_mask, rollout_logprobs, 0.0)}


ratio_to_sampler.replaces_old = True  # they are no longer what the trainer gave as the updates began
