"""Several rewards, each normalised by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from llmrl.config import NotNegative
from llmrl.ops.groups import decoupled_scores, differing, group_mean, group_std


def gdpo(reward_parts: Tensor, reward_weights: Tensor, group_ids: Tensor, *, eps: NotNegative = 1e-4) -> Tensor:
    """Σ_k weight_k · (part_k - mean) / (std + eps) in the group, then the same over the batch (arXiv:2601.05242, eq. 4-6).

    [B,K], [K] -> [B]; std with n-1. A part that does not apply (NaN) leaves its column's statistics and adds nothing; a row
    that no scorer judged leaves the batch's too. A group without spread in any part gets exactly 0.
    """
    summed = decoupled_scores(reward_parts, reward_weights, group_ids, eps)
    judged = torch.where(reward_parts.isnan().all(1), torch.nan, summed)
    everything = torch.zeros_like(group_ids)
    credit = (judged - group_mean(judged, everything)) / (group_std(judged, everything) + eps)
    return differing(credit, judged, group_ids)


gdpo.needs_siblings = True
