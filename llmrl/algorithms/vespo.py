"""Variational sequence-level soft policy optimisation."""

from __future__ import annotations

from llmrl.advantages.group import standardised
from llmrl.algorithm import Algorithm
from llmrl.config import Positive
from llmrl.objectives import weighted


def vespo(*, epochs: Positive = 1, minibatches: Positive = 1) -> Algorithm:
    """REINFORCE under a soft function of the whole answer's ratio to its sampler (arXiv:2602.10693)."""
    return Algorithm(
        advantage=standardised,
        objective=(weighted.vespo,),
        reduce="token_mean",
        epochs=epochs,
        minibatches=minibatches,
    )
