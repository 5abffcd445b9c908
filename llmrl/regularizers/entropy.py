"""A bonus for uncertainty."""

from __future__ import annotations

import torch
from torch import Tensor

from llmrl.batch import Loss


def entropy_bonus(entropy: Tensor, *, entropy_coef: float = 0.01) -> Loss:
    """-entropy_coef · entropy; [B,T], nats at the sampling temperature (arXiv:1602.01783)."""
    return Loss(-entropy_coef * entropy)


class AdaptiveEntropy:
    """A bonus that comes on when the entropy is at or below `target` and grows until it is not (arXiv:2505.22312).

    After each optimizer step with mean token entropy H: c ← min(c + delta, most) if H <= target, else
    max(c - delta, least). The next step's bonus is -c · entropy if H <= target, else 0; the first step has none.
    """

    def __init__(
        self,
        *,
        entropy_coef: float = 0.0,
        target: float = 0.2,
        delta: float = 0.005,
        least: float = 0.0,
        most: float = 1.0,
    ):
        self.entropy_coef, self.target, self.delta, self.least, self.most = entropy_coef, target, delta, least, most

    def init(self) -> dict[str, float]:
        return {"entropy_coef": self.entropy_coef, "applied": 0.0}

    def apply(self, state: dict[str, float], entropy: Tensor) -> Loss:
        applied = torch.full_like(entropy, state["applied"]).detach()
        return Loss(
            -state["applied"] * entropy, stats={"entropy/mean": entropy.detach(), "entropy/coefficient": applied}
        )

    def observe(self, state: dict[str, float], means: dict[str, float]) -> dict[str, float]:
        if "entropy/mean" not in means:  # no token counted
            return state
        low = means["entropy/mean"] <= self.target
        step = self.delta if low else -self.delta
        coefficient = max(min(state["entropy_coef"] + step, self.most), self.least)
        return {"entropy_coef": coefficient, "applied": coefficient if low else 0.0}
