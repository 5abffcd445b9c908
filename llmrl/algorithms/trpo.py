"""Trust-region policy optimisation."""

from __future__ import annotations

import math
from functools import partial

from llmrl.advantages.group import standardised
from llmrl.algorithm import Algorithm
from llmrl.config import AboveZero, NotNegative, Positive
from llmrl.objectives.policy import clipped_surrogate
from llmrl.regularizers.kl import kl_old
from llmrl.updates.trpo import Trpo


def trpo(
    *,
    max_kl: AboveZero = 0.01,
    damping: NotNegative = 0.1,
    iterations: Positive = 10,
    minibatches: Positive = 1,
) -> Algorithm:
    """The largest improvement within KL(old || new) <= max_kl, by a natural-gradient step (arXiv:1502.05477).

    For adapters or small models: see update `trpo`. Ours: credit relative to the prompt's group in place of a critic, whose
    own fit the paper leaves to another optimizer.
    """
    return Algorithm(
        advantage=standardised,
        objective=(partial(clipped_surrogate, clip_low=math.inf, clip_high=math.inf),),
        regularizers=(kl_old,),
        update=Trpo(max_kl=max_kl, damping=damping, iterations=iterations),
        reduce="token_mean",
        minibatches=minibatches,
    )
