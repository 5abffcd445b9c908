"""Truncated importance sampling between engine and trainer."""

from __future__ import annotations

from functools import partial
from typing import Literal

from llmrl.advantages.group import standardised
from llmrl.algorithm import Algorithm
from llmrl.config import AboveZero, NotNegative, Positive
from llmrl.objectives.policy import clipped_surrogate
from llmrl.shaping.importance import importance_weights


def tis(
    *,
    cap: AboveZero = 2.0,
    level: Literal["token", "sequence", "geometric"] = "token",
    clip_low: NotNegative = 0.2,
    clip_high: NotNegative = 0.2,
    epochs: Positive = 1,
    minibatches: Positive = 1,
) -> Algorithm:
    """GRPO whose tokens are weighted by min(trainer's over engine's probability, cap).

    Source: Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training".
    """
    return Algorithm(
        advantage=standardised,
        shaping=(partial(importance_weights, level=level, mode="truncate", high=cap),),
        objective=(partial(clipped_surrogate, clip_low=clip_low, clip_high=clip_high),),
        reduce="token_mean",
        epochs=epochs,
        minibatches=minibatches,
    )
