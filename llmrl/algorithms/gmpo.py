"""Geometric-mean policy optimisation."""

from __future__ import annotations

from functools import partial

from llmrl.advantages.group import standardised
from llmrl.algorithm import Algorithm
from llmrl.config import NotNegative, Positive
from llmrl.objectives import sequence


def gmpo(
    *,
    clip_low: NotNegative = 0.4,
    clip_high: NotNegative = 0.4,
    epochs: Positive = 1,
    minibatches: Positive = 1,
) -> Algorithm:
    """GRPO with the geometric mean of an answer's clipped ratios (arXiv:2507.20673). The clip bounds log ratios."""
    return Algorithm(
        advantage=standardised,
        objective=(partial(sequence.gmpo, clip_low=clip_low, clip_high=clip_high),),
        epochs=epochs,
        minibatches=minibatches,
    )
