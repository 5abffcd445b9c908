"""One score opens the gate for the others."""

from __future__ import annotations

import torch
from torch import Tensor


def gated(reward_parts: Tensor, reward_weights: Tensor, *, threshold: float = 0.5, closed: float = 0.0) -> Tensor:
    """Σ_k weight_k · part_k where the first scorer's part is at least `threshold`, else `closed`; [B,K], [K] -> [B].

    So a form that is asked for can be a condition and not a bonus. The gate counts in the sum by its own weight (0
    leaves it out). Parts that do not apply (NaN) add nothing; a gate that does not apply is shut.
    """
    total = (reward_parts.nan_to_num(0.0) * reward_weights).sum(1)
    return torch.where(reward_parts[:, 0] >= threshold, total, torch.full_like(total, closed))
