"""Credit relative to the rollouts of a prompt that have the same structure."""

from __future__ import annotations

from torch import Tensor

from llmrl.config import Natural, NotNegative
from llmrl.ops.groups import differing, group_mean, group_std, subgroups


def stratified(
    rewards: Tensor,
    group_ids: Tensor,
    strata: Tensor,
    *,
    alpha: float = 0.6,
    max_stratum: Natural = 3,
    eps: NotNegative = 1e-6,
) -> Tensor:
    """alpha · (r - mean) / (std + eps) within the stratum + (1 - alpha) · the same within the group (arXiv:2510.06214).

    [B] each; std with n in both. Strata from `max_stratum` on are one (3: no call, one, two, three or more). One
    stratum gives GRPO. A stratum of one, or without spread, adds 0: the group's term then speaks alone.
    """
    within = subgroups(group_ids, strata.clamp(max=max_stratum))
    return alpha * _standardised(rewards, within, eps) + (1 - alpha) * _standardised(rewards, group_ids, eps)


def _standardised(rewards: Tensor, ids: Tensor, eps: float) -> Tensor:
    scaled = (rewards - group_mean(rewards, ids)) / (group_std(rewards, ids, population=True) + eps)
    return differing(scaled, rewards, ids)


stratified.needs_siblings = True
