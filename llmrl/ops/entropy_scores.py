"""How uncertain a token is among the others, on a scale from -1 to 1 (HAPO, arXiv:2509.16591)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SMALLEST = 1e-8


class Scale(NamedTuple):
    """Where 0, 1 and -1 lie: log-entropy at the pivot, its spread about it, and how many spreads the extremes are away."""

    pivot: float
    spread: float
    highest: float
    lowest: float


def scale_of(entropy: Tensor, quantile: float) -> Scale:
    """The scale of some tokens' entropies [n], in nats: the pivot is their quantile by nearest rank."""
    if not len(entropy):
        return Scale(0.0, 1.0, 1.0, 1.0)
    logs = entropy.clamp(min=SMALLEST).log()
    pivot = logs.kthvalue(round(quantile * (len(logs) - 1)) + 1).values
    spread = ((logs - pivot) ** 2).mean().sqrt().clamp(min=SMALLEST)
    units = (logs - pivot) / spread
    highest, lowest = units.max().clamp(min=SMALLEST), (-units.min()).clamp(min=SMALLEST)
    return Scale(float(pivot), float(spread), float(highest), float(lowest))


def scores(entropy: Tensor, scale: Scale) -> Tensor:
    """In [-1, 1], the shape of entropy; what lies beyond the scale's extremes is cut."""
    units = (entropy.clamp(min=SMALLEST).log() - scale.pivot) / scale.spread
    return torch.where(units > 0, units / scale.highest, units / scale.lowest).clamp(-1, 1)


def clip_ranges(scored: Tensor, clip_low: float, clip_high: float, clip_scale: float) -> tuple[Tensor, Tensor]:
    """(low, high) of each token: certain ones get a wider lower side, uncertain ones a wider upper side."""
    low = torch.where(scored > 0, clip_low, clip_low * (1 - clip_scale * scored))
    return low, torch.where(scored > 0, clip_high * (1 + clip_scale * scored), clip_high)
