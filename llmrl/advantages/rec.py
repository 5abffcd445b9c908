"""Group-relative baselines that make no assumption on who sampled the rollouts (arXiv:2509.24203).

All read [B] and give [B]. A group of one has the baseline 0, so that its rollout gets its reward: no sibling is needed.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from llmrl.config import NotNegative
from llmrl.ops.groups import differing, group_count, group_max, group_mean, group_std


def rec(
    rewards: Tensor,
    weights: Tensor,
    loss_mask: Tensor,
    group_ids: Tensor,
    *,
    standardise: bool = False,
    eps: NotNegative = 1e-6,
) -> Tensor:
    """r less the group's mean, over the rows that a selection has not given the weight 0 (arXiv:2509.24203, section 2).

    standardise: divided by (std + eps), the population's. rewards [B], weights and loss_mask [B,T] -> [B]. A dropped row
    gets 0. A group of one kept row gets its reward; one of several without spread exactly 0.
    """
    silenced = loss_mask.any(1) & ~(loss_mask & (weights != 0)).any(1)
    kept = torch.where(silenced, torch.nan, rewards)
    credit = kept - group_mean(kept, group_ids)
    if standardise:
        credit = credit / (group_std(kept, group_ids, population=True) + eps)
    return _or_the_reward(differing(credit, kept, group_ids), kept, group_ids)


def opmd(
    rewards: Tensor, group_ids: Tensor, *, baseline: Literal["mean", "log_mean_exp"] = "mean", tau: NotNegative = 1.0
) -> Tensor:
    """r less the group's mean, or less tau · log mean exp(r / tau), which is tau · log Z (arXiv:2509.24203, section 3).

    The second is never below the first and nears the largest reward as tau falls. A group of one gets its reward, one of
    several without spread exactly 0.
    """
    if baseline == "mean":
        level = group_mean(rewards, group_ids)
    else:
        top = group_max(rewards, group_ids)
        mean = group_mean(((rewards - top) / tau).exp(), group_ids)
        level = top + tau * mean.log()
    return _or_the_reward(differing(rewards - level, rewards, group_ids), rewards, group_ids)


def asymre(rewards: Tensor, group_ids: Tensor, *, shift: float = -0.1) -> Tensor:
    """r less (the group's mean + shift): a lower baseline gives every rollout some credit (arXiv:2506.20520).

    In gradient that is REINFORCE plus -shift times the likelihood of what was sampled, also in a group without spread. A
    group of one gets its reward.
    """
    centred = differing(rewards - group_mean(rewards, group_ids), rewards, group_ids)
    return _or_the_reward(torch.where(rewards.isnan(), 0.0, centred - shift), rewards, group_ids)


def _or_the_reward(credit: Tensor, rewards: Tensor, group_ids: Tensor) -> Tensor:
    alone = (group_count(rewards, group_ids) == 1) & ~rewards.isnan()
    return torch.where(alone, rewards, credit)
