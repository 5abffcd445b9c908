"""Several rewards of different scale into one."""

from __future__ import annotations

from torch import Tensor

from llmrl.config import NotNegative
from llmrl.ops.groups import decoupled_scores


def gdpo(reward_parts: Tensor, reward_weights: Tensor, group_ids: Tensor, *, eps: NotNegative = 1e-4) -> Tensor:
    """Σ_k weight_k · (part_k - mean) / (std + eps) in the group: normalise, then sum (arXiv:2601.05242, eq. 4-5).

    [B,K], [K] -> [B]; std with n-1. A scorer keeps its weight whatever its scale. A part that does not apply (NaN) leaves
    its column's statistics and adds nothing; one without spread in the group adds 0. The advantage of that name also
    standardises over the batch.
    """
    return decoupled_scores(reward_parts, reward_weights, group_ids, eps)
