"""RED: rollouts of the past stay useful when failures do not outnumber successes, or when success weighs more."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from llmrl.config import AboveZero
from llmrl.ops.groups import group_mean, group_spread, members
from llmrl.ops.ratio import EXPONENT_LIMIT
from llmrl.selections.selection import Selection


def red_drop(rewards: Tensor, group_ids: Tensor, step_number: Tensor, *, seed: int = 0) -> Selection:
    """Weight 0 for as many rollouts below the group's mean as make up the surplus over the others (arXiv:2509.24203).

    RED-Drop: [B] -> weights [B] of 0 and 1. Which ones go is drawn uniformly, from seed and step, by the rollout's place
    among its siblings. Dropped rows stay in the count of tokens, as in the authors' code; the advantage `rec` leaves them
    out of its mean.
    """
    generator = torch.Generator().manual_seed(1_000_003 * seed + int(step_number))
    draws = torch.rand(len(rewards), generator=generator)
    place = torch.zeros(len(rewards), dtype=torch.long)
    for rows in members(group_ids):
        place[rows] = torch.arange(len(rows))
    return Selection(weights=kept(rewards, group_ids, draws[place]).to(rewards.dtype))


def kept(rewards: Tensor, group_ids: Tensor, draws: Tensor) -> Tensor:
    """[B] bool: False for the surplus of rewards below their group's mean, those of the smallest draws."""
    below = (rewards < group_mean(rewards, group_ids)) & group_spread(rewards, group_ids)
    surplus: Counter[int] = Counter()
    for group, negative in zip(group_ids.tolist(), below.tolist(), strict=True):
        surplus[group] += 1 if negative else -1
    keep = torch.ones_like(below)
    for row in draws.argsort(stable=True).tolist():
        group = int(group_ids[row])
        if below[row] and surplus[group] > 0:
            keep[row] = False
            surplus[group] -= 1
    return keep


def red_weight(advantages: Tensor, loss_mask: Tensor, *, temperature: AboveZero = 1.0) -> Selection:
    """Weight exp(A / temperature), as the authors' code has it: not normalised (RED-Weight, arXiv:2509.24203).

    [B,T] -> weights [B,T]; the exponent is kept within ±20. The paper also writes a form that is normalised.
    """
    exponent = (advantages / temperature).clamp(-EXPONENT_LIMIT, EXPONENT_LIMIT)
    return Selection(weights=torch.where(loss_mask, exponent.exp(), 0.0))
