"""Several scores into one reward."""

from __future__ import annotations

from torch import Tensor


def weighted_sum(reward_parts: Tensor, reward_weights: Tensor) -> Tensor:
    """Σ_k weight_k · part_k; [B,K], [K] -> [B]. A part that does not apply to a row (NaN) adds nothing there."""
    return (reward_parts.nan_to_num(0.0) * reward_weights).sum(1)
