"""All scores have to be good: their product."""

from __future__ import annotations

from torch import Tensor


def product(reward_parts: Tensor, reward_weights: Tensor) -> Tensor:
    """Π_k (weight_k · part_k); [B,K], [K] -> [B]. A part that does not apply to a row (NaN) leaves the product alone."""
    applies = ~reward_parts.isnan()
    return (reward_parts * reward_weights).where(applies, reward_parts.new_ones(())).prod(1) * applies.any(1)
