"""Modulated hazard-aware policy optimisation."""

from __future__ import annotations

from functools import partial

from llmrl.advantages.group import standardised
from llmrl.algorithm import Algorithm
from llmrl.config import Positive
from llmrl.objectives import mhpo as objectives


def mhpo(
    *, bound: float = 1.5, renormalize: bool = False, epochs: Positive = 1, minibatches: Positive = 1
) -> Algorithm:
    """GRPO with a ratio that saturates and is damped, in place of the clip (arXiv:2603.16929).

    At r = 1 the damping is 0.265 already: raise the learning rate of GRPO about fourfold, or set renormalize.
    """
    return Algorithm(
        advantage=standardised,
        objective=(partial(objectives.mhpo, bound=bound, renormalize=renormalize),),
        reduce="sequence_mean",
        epochs=epochs,
        minibatches=minibatches,
    )
