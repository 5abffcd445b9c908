"""Credit conditioned on a property of the answer: its length or its entropy."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from llmrl.ops.groups import members
from llmrl.ops.masked import masked_sum

Schedule = Literal["constant", "inter_first", "intra_first", "cosine", "cosine_reverse"]
PEAK, WARMUP, CYCLE = 0.6, 30, 40  # of the released cosine schedule, in steps


def canon(
    rewards: Tensor,
    lengths: Tensor,
    group_ids: Tensor,
    step_number: Tensor,
    *,
    mu: float = 1.0,
    schedule: Schedule = "constant",
    alpha: float = 1.0,
) -> Tensor:
    """Each half of a group, split at its median length, against the other and against itself (CANON, arXiv:2509.23962).

    A = mu (r - mean of the other half) + (1 - mu) (r - mean of the own half), all [B]; the short half is the first
    ⌊G/2⌋ rows by length, ties in row order. alpha scales the long half's rewards in the first term (eq. 8 there): below 1
    it favours short answers, also in a group of equal rewards. schedule: mu from the mean reward of the batch
    (inter_first: 1 - it) or from the step. Equal halves and mu 0.5 give Dr.GRPO. The released code also divides by the
    longest answer allowed, which is the reduction `fixed_length` here, and gives a group of one its reward instead of 0.
    """
    mu = mixture(schedule, mu, rewards, step_number)
    return against_halves(rewards, lengths, group_ids, mu, alpha, scaled="high")


def canon_entropy(
    rewards: Tensor,
    old_entropy: Tensor,
    loss_mask: Tensor,
    group_ids: Tensor,
    step_number: Tensor,
    *,
    mu: float = 1.0,
    schedule: Schedule = "constant",
    alpha: float = 1.0,
) -> Tensor:
    """`canon` with the mean entropy of an answer's tokens as the property (arXiv:2509.23962); alpha scales the low half.

    old_entropy, loss_mask [B,T], the rest [B] -> [B].
    """
    entropy = masked_sum(old_entropy, loss_mask, 1) / loss_mask.sum(1).clamp(min=1)
    mu = mixture(schedule, mu, rewards, step_number)
    return against_halves(rewards, entropy, group_ids, mu, alpha, scaled="low")


def against_halves(
    rewards: Tensor, metric: Tensor, group_ids: Tensor, mu: float, alpha: float, scaled: Literal["low", "high"]
) -> Tensor:
    """mu of each half of a group against the other + 1 - mu against itself; a group of one gets 0."""
    credit = torch.zeros_like(rewards)
    for rows in members(group_ids):
        given = rewards[rows]
        if len(rows) == 1 or (alpha == 1 and given.max() == given.min()):
            continue
        order = rows[metric[rows].argsort(stable=True)]
        low, high = rewards[order[: len(rows) // 2]], rewards[order[len(rows) // 2 :]]
        low_scaled, high_scaled = (alpha * low, high) if scaled == "low" else (low, alpha * high)
        inter = torch.cat([low_scaled - high_scaled.mean(), high_scaled - low_scaled.mean()])
        intra = torch.cat([low - low.mean(), high - high.mean()])
        credit[order] = mu * inter + (1 - mu) * intra
    return credit


def mixture(schedule: Schedule, mu: float, rewards: Tensor, step_number: Tensor) -> float:
    """mu of this step."""
    if schedule == "constant":
        return mu
    if schedule in ("inter_first", "intra_first"):
        accuracy = float(rewards.mean()) if len(rewards) else 0.0
        return 1 - accuracy if schedule == "inter_first" else accuracy
    share = cosine_share(int(step_number))
    return 1 - share if schedule == "cosine" else share


def cosine_share(step: int) -> float:
    """Rises to 0.6 in 30 steps, then falls to 0 along half a cosine every 40 steps, without end."""
    if step < WARMUP:
        return PEAK * (step + 1) / WARMUP
    return 0.5 * PEAK * (1 + math.cos(math.pi * ((step - WARMUP) % CYCLE) / CYCLE))


for _part in (canon, canon_entropy):
    _part.needs_siblings = True
