"""Soft adaptive policy optimisation."""

from __future__ import annotations

from functools import partial

from llmrl.advantages.group import standardised
from llmrl.algorithm import Algorithm
from llmrl.config import AboveZero, Positive
from llmrl.objectives import sapo as objectives


def sapo(
    *,
    temperature_positive: AboveZero = 1.0,
    temperature_negative: AboveZero = 1.05,
    epochs: Positive = 1,
    minibatches: Positive = 1,
) -> Algorithm:
    """GRPO with a soft gate on the ratio in place of the clip (arXiv:2511.20347)."""
    gate = partial(
        objectives.sapo, temperature_positive=temperature_positive, temperature_negative=temperature_negative
    )
    return Algorithm(
        advantage=standardised,
        objective=(gate,),
        reduce="sequence_mean",
        epochs=epochs,
        minibatches=minibatches,
    )
