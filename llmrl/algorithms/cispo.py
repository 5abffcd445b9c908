"""Clipped importance-sampling weights policy optimisation."""

from __future__ import annotations

from functools import partial

from llmrl.advantages.group import standardised
from llmrl.algorithm import Algorithm
from llmrl.config import AboveZero, NotNegative, Positive
from llmrl.objectives import weighted


def cispo(
    *,
    ratio_min: NotNegative = 0.0,
    ratio_max: AboveZero = 5.0,
    epochs: Positive = 1,
    minibatches: Positive = 1,
) -> Algorithm:
    """REINFORCE under a detached, bounded ratio, so that no token loses its gradient (MiniMax-M1, arXiv:2506.13585)."""
    return Algorithm(
        advantage=standardised,
        objective=(partial(weighted.cispo, ratio_min=ratio_min, ratio_max=ratio_max),),
        reduce="token_mean",
        epochs=epochs,
        minibatches=minibatches,
    )
