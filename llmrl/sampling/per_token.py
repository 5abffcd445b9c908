"""A sampling part as an engine calls it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class PerToken:
    """For `Sampling.per_token`: the part's multipliers in its present state, times the recipe's temperature."""

    part: Any
    state: Any
    temperature: float

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(temperatures [n], entropies [n] in nats before them) of untempered logits [n,V]."""
        entropies = torch.special.entr(logits.softmax(-1)).sum(-1)
        return self.temperature * self.part.temperatures(self.state, entropies), entropies
