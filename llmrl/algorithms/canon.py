"""Conditional advantage estimation."""

from __future__ import annotations

from functools import partial
from typing import Literal

from llmrl.advantages import canon as advantages
from llmrl.algorithm import Algorithm
from llmrl.config import NotNegative, Positive
from llmrl.objectives.policy import clipped_surrogate


def canon(
    *,
    metric: Literal["entropy", "length"] = "entropy",
    mu: float = 1.0,
    schedule: advantages.Schedule = "constant",
    alpha: float = 1.0,
    clip_low: NotNegative = 0.2,
    clip_high: NotNegative = 0.28,
    epochs: Positive = 1,
    minibatches: Positive = 1,
) -> Algorithm:
    """Answers of high entropy, or long ones, against those of low entropy, or short ones (arXiv:2509.23962).

    mu 1 compares the halves of a group with each other, 0 each with itself; an alpha below 1 prefers short answers, or
    those of high entropy.
    """
    compare = advantages.canon if metric == "length" else advantages.canon_entropy
    return Algorithm(
        advantage=partial(compare, mu=mu, schedule=schedule, alpha=alpha),
        objective=(partial(clipped_surrogate, clip_low=clip_low, clip_high=clip_high),),
        reduce="fixed_length",
        epochs=epochs,
        minibatches=minibatches,
    )
