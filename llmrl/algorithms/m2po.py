"""Second-moment trust policy optimisation."""

from __future__ import annotations

from functools import partial

from llmrl.advantages.group import standardised
from llmrl.algorithm import Algorithm
from llmrl.config import Positive
from llmrl.objectives import m2po as objectives
from llmrl.shaping.m2po import m2po_mask


def m2po(*, threshold: float = 0.04, epochs: Positive = 1, minibatches: Positive = 4) -> Algorithm:
    """GRPO without a clip: the tokens that moved furthest are left out instead, for stale rollouts (arXiv:2510.01161)."""
    return Algorithm(
        advantage=standardised,
        prepare=(partial(m2po_mask, threshold=threshold),),
        objective=(objectives.m2po,),
        reduce="token_mean",
        epochs=epochs,
        minibatches=minibatches,
    )
