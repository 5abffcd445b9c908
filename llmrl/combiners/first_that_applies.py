"""Scorers in order of precedence."""

from __future__ import annotations

import torch
from torch import Tensor


def first_that_applies(reward_parts: Tensor, reward_weights: Tensor) -> Tensor:
    """weight_k · part_k of the first scorer, in the recipe's order, that has a value; [B,K], [K] -> [B]; 0 without any.

    For mixed data: the code scorer where a row has tests, else the answer's, else the reward model's.
    """
    applies = ~reward_parts.isnan()
    first = applies & (applies.cumsum(1) == 1)
    return torch.where(first, reward_parts * reward_weights, 0.0).sum(1)
