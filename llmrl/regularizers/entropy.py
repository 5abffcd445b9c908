"""A bonus for uncertainty."""

from __future__ import annotations

from torch import Tensor

from llmrl.batch import Loss


def entropy_bonus(entropy: Tensor, *, entropy_coef: float = 0.01) -> Loss:
    """-entropy_coef · entropy; [B,T], nats at the sampling temperature (arXiv:1602.01783)."""
    return Loss(-entropy_coef * entropy)
