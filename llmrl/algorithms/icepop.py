"""IcePop: tokens that engine and trainer disagree on are left out."""

from __future__ import annotations

from functools import partial

from llmrl.advantages.group import standardised
from llmrl.algorithm import Algorithm
from llmrl.config import NotNegative, Positive
from llmrl.objectives.policy import clipped_surrogate
from llmrl.shaping import importance


def icepop(
    *,
    low: float = 0.5,
    high: float = 5.0,
    clip_low: NotNegative = 0.2,
    clip_high: NotNegative = 0.2,
    epochs: Positive = 1,
    minibatches: Positive = 1,
) -> Algorithm:
    """GRPO whose tokens are weighted by the trainer's over the engine's probability, and 0 outside [low, high].

    Source: Ring-1T, arXiv:2510.18855.
    """
    return Algorithm(
        advantage=standardised,
        shaping=(partial(importance.icepop, low=low, high=high),),
        objective=(partial(clipped_surrogate, clip_low=clip_low, clip_high=clip_high),),
        reduce="token_mean",
        epochs=epochs,
        minibatches=minibatches,
    )
