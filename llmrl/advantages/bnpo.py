"""Beta normalisation: the scale of a group's credit comes from how often all groups succeed."""

from __future__ import annotations

import torch
from torch import Tensor

from llmrl.ops.groups import differing, group_count, group_mean, index

LARGEST_WEIGHT = 1e6


def bnpo(
    rewards: Tensor,
    reward_parts: Tensor,
    group_ids: Tensor,
    *,
    decompose: bool = False,
    low: float = 0.0,
    high: float = 1.0,
) -> Tensor:
    """(s - p) / f(p): f is the Beta density fitted to the groups' success rates p (arXiv:2506.02864, section 4).

    s = (r - low) / (high - low), kept in [0, 1]; p the group's mean of s. alpha = max(1, 1 + a/3), beta = max(1, 1 + b/3),
    where Beta(a, b) has the mean and the variance (n-1) of p over groups; 1 / f is at most 1e6. alpha = beta = 1 is plain
    centring, 3/2 is GRPO up to a constant. decompose: the mean over the columns of reward_parts, each with its own fit;
    their weights play no part. rewards [B], reward_parts [B,K] -> [B].

    One group, or none that differs from another, has alpha = beta = 1 (the authors' code divides by 0 in the second case).
    A group of one, or without spread, gets exactly 0.
    """
    columns = reward_parts.unbind(1) if decompose else [rewards]
    credits = [_normalised(((x - low) / (high - low)).clamp(0, 1), group_ids) for x in columns]
    return torch.stack(credits).mean(0)


def normaliser(rates: Tensor) -> tuple[float, float]:
    """(alpha, beta) of the density that success rates [number of groups] are weighted by."""
    if len(rates) < 2:
        return 1.0, 1.0
    mean, variance = float(rates.mean()), float(rates.var())
    if variance == 0 or mean in (0, 1):
        return 1.0, 1.0
    strength = mean * (1 - mean) / variance - 1
    return max(1.0, 1 + strength * mean / 3), max(1.0, 1 + strength * (1 - mean) / 3)


def _normalised(shares: Tensor, group_ids: Tensor) -> Tensor:
    """[B]: the credit of shares of success [B], NaN where there is none."""
    place, sizes = index(group_ids)
    rate = group_mean(shares, group_ids).double()
    rates = rate.new_full((len(sizes),), torch.nan)
    rates[place] = rate.where(group_count(shares, group_ids) > 0, torch.nan)
    alpha, beta = normaliser(rates[~rates.isnan()])
    a, b = rate.new_tensor(alpha), rate.new_tensor(beta)
    log_density = torch.xlogy(a - 1, rate) + torch.xlogy(b - 1, 1 - rate) + (a + b).lgamma() - a.lgamma() - b.lgamma()
    weight = (-log_density).exp().clamp(max=LARGEST_WEIGHT)
    return differing((shares - rate) * weight, shares, group_ids).to(shares.dtype)


bnpo.needs_siblings = True
