"""Credit for groups that succeed once, and not for each success."""

from __future__ import annotations

import torch
from torch import Tensor

from llmrl.config import NotNegative, Positive
from llmrl.ops.groups import differing, group_count, group_max, group_std, group_sum


def passk_top(rewards: Tensor, group_ids: Tensor, *, standardise: bool = True, eps: NotNegative = 1e-6) -> Tensor:
    """The best rollout gets its lead over the second best, all others 0 (arXiv:2503.19595); [B] -> [B].

    A_best = (r_1 - r_2) / (std + eps), std with n-1; without standardise not divided. A shared first place has no lead.
    """
    best = rewards == group_max(rewards, group_ids)
    second = group_max(torch.where(best, torch.nan, rewards), group_ids)
    alone = best & (group_sum(best.long(), group_ids) == 1)
    lead = torch.where(alone, rewards - second, torch.zeros_like(rewards))
    return differing(lead / (group_std(rewards, group_ids) + eps) if standardise else lead, rewards, group_ids)


def passk_analytic(rewards: Tensor, group_ids: Tensor, *, k: Positive = 4, threshold: float = 0.5) -> Tensor:
    """A rollout's credit averaged over all sets of k siblings, where a set earns 1 with any success (arXiv:2508.10751).

    n rollouts, w of them wrong (below `threshold`): m = 1 - C(w,k)/C(n,k), s = sqrt(m (1 - m)); a right one gets
    (1 - m)/s, a wrong one (1 - m - C(w-1,k-1)/C(n-1,k-1))/s; s = 0 gives 0. k = 1 is GRPO with the population's std. A
    group smaller than k is one set. [B] -> [B].
    """
    wrong = (rewards < threshold) & ~rewards.isnan()
    size = group_count(rewards, group_ids).double()
    failures = group_sum(wrong.double(), group_ids)
    missed = _chance(failures, size, k)
    scale = (missed * (1 - missed)).sqrt()
    here = torch.where(wrong, missed - _chance(failures - 1, size - 1, k - 1), missed)
    credit = torch.where(scale > 0, here / scale, torch.zeros_like(here)).to(rewards.dtype)
    return differing(credit, rewards, group_ids)


def _chance(wrong: Tensor, size: Tensor, k: int) -> Tensor:
    """C(wrong, k) / C(size, k), with k = size where it is larger: all of k drawn without replacement are wrong."""
    product = torch.ones_like(size)
    for drawn in range(k):
        product = product * torch.where(drawn < size, (wrong - drawn) / (size - drawn).clamp(min=1), 1.0).clamp(min=0)
    return product


for _part in (passk_top, passk_analytic):
    _part.needs_siblings = True
