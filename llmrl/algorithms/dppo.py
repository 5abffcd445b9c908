"""Divergence proximal policy optimisation."""

from __future__ import annotations

from functools import partial
from typing import Literal

from llmrl.advantages.group import standardised
from llmrl.algorithm import Algorithm
from llmrl.config import NotNegative, Positive
from llmrl.objectives import dppo as objectives

USUAL = {"tv": 0.2, "kl": 0.05}


def dppo(
    *,
    divergence: Literal["tv", "kl"] = "tv",
    delta_low: NotNegative | None = None,
    delta_high: NotNegative | None = None,
    epochs: Positive = 1,
    minibatches: Positive = 1,
) -> Algorithm:
    """A token stops moving once its probability is far from the sampler's, not its ratio (arXiv:2602.04879).

    delta_low, delta_high: how far down and up; None is 0.2 in probability for tv and 0.05 nats for kl.
    """
    low, high = (USUAL[divergence] if delta is None else delta for delta in (delta_low, delta_high))
    return Algorithm(
        advantage=standardised,
        objective=(partial(objectives.dppo, divergence=divergence, delta_low=low, delta_high=high),),
        reduce="token_mean",
        epochs=epochs,
        minibatches=minibatches,
    )
