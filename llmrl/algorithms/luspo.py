"""Length-unbiased sequence policy optimisation."""

from __future__ import annotations

from functools import partial

from llmrl.advantages.group import standardised
from llmrl.algorithm import Algorithm
from llmrl.config import NotNegative, Positive
from llmrl.objectives import sequence


def luspo(
    *,
    clip_low: NotNegative = 3e-4,
    clip_high: NotNegative = 4e-4,
    epochs: Positive = 1,
    minibatches: Positive = 4,
) -> Algorithm:
    """GSPO with each answer's loss times its length (arXiv:2602.05261). The clip is GSPO's."""
    return Algorithm(
        advantage=standardised,
        objective=(partial(sequence.luspo, clip_low=clip_low, clip_high=clip_high),),
        epochs=epochs,
        minibatches=minibatches,
    )
