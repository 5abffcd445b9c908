"""Numbers that are always watched. docs/monitors.md says what a bad value means and what to do."""

from __future__ import annotations

import torch
from torch import Tensor

from llmrl.ops.kl import k3

GAP = ("rollout/logprob_gap_mean", "rollout/logprob_gap_max", "rollout/logprob_gap_kl")
STALE_GAP = ("rollout/stale_gap_mean", "rollout/stale_gap_max", "rollout/stale_gap_kl")


class Averages:
    """Sums and counts by name, so that means over micro-batches, updates and ranks are exact; maxima beside them."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, float] = {}
        self.maxima: dict[str, float] = {}

    def add(self, name: str, values: Tensor, mask: Tensor | None = None) -> None:
        """Average `values` over where `mask` counts (everywhere without one)."""
        kept = values.detach()[mask] if mask is not None else values.detach().reshape(-1)
        self.sums[name] = self.sums.get(name, 0.0) + float(kept.float().sum())
        self.counts[name] = self.counts.get(name, 0.0) + kept.numel()

    def add_total(self, name: str, total: float) -> None:
        """A number that is a sum already, such as a part's share of the loss."""
        self.sums[name] = self.sums.get(name, 0.0) + total
        self.counts[name] = 1.0

    def add_maximum(self, name: str, values: Tensor) -> None:
        if values.numel():
            here = float(values.detach().max())
            self.maxima[name] = max(self.maxima.get(name, here), here)

    def merge(self, other: Averages) -> None:
        """Take in what was measured elsewhere."""
        for mine, theirs in ((self.sums, other.sums), (self.counts, other.counts)):
            for name, number in theirs.items():
                mine[name] = mine.get(name, 0.0) + number
        for name, number in other.maxima.items():
            self.maxima[name] = max(self.maxima.get(name, number), number)


def gap(
    averages: Averages,
    logprobs: Tensor,
    rollout_logprobs: Tensor,
    mask: Tensor,
    staleness: Tensor | None = None,
) -> None:
    """How far the engine's log-probabilities are from the trainer's on the same tokens: mean and max |Δ|, KL by k3.

    staleness [B]: rows that older weights wrote differ by design, and are measured under another name.
    """
    difference, kl = (logprobs - rollout_logprobs).detach().abs(), k3(rollout_logprobs, logprobs.detach())
    stale = torch.zeros(len(mask), dtype=torch.bool, device=mask.device) if staleness is None else staleness > 0
    for (mean, largest, divergence), rows in ((GAP, ~stale), (STALE_GAP, stale)):
        kept = mask & rows[:, None]
        averages.add(mean, difference, kept)
        averages.add_maximum(largest, difference[kept])
        averages.add(divergence, kl, kept)


def drift(
    averages: Averages, logprobs: Tensor, old_logprobs: Tensor | None, ref_logprobs: Tensor | None, mask: Tensor
) -> None:
    """KL to the policy as the updates began (tokens were drawn from it) and to the reference, on the batch's tokens."""
    if old_logprobs is not None:
        averages.add("kl/old", k3(old_logprobs, logprobs.detach()), mask)
    if ref_logprobs is not None:
        averages.add("kl/ref", k3(logprobs.detach(), ref_logprobs), mask)


def finite(values: Tensor) -> bool:
    return bool(torch.isfinite(values).all())
