"""Pairwise proximal policy optimisation."""

from __future__ import annotations

from functools import partial
from typing import Literal

from llmrl.algorithm import Algorithm
from llmrl.config import AboveZero, NotNegative, Positive
from llmrl.objectives import p3o as objectives
from llmrl.selections.pairs import disjoint_pairs


def p3o(
    *,
    clip: Literal["joint", "separate"] = "joint",
    clip_range: NotNegative = 0.2,
    kl_coef: NotNegative = 0.05,
    max_ratio: AboveZero = 10.0,
    epochs: Positive = 4,
    minibatches: Positive = 1,
) -> Algorithm:
    """Two answers of a prompt credited by their difference in reward: no critic, no baseline (arXiv:2310.00212).

    What a reward model adds to all answers of a prompt cancels. The penalty on leaving the reference is in the objective.
    """
    loss = partial(objectives.p3o, clip=clip, clip_range=clip_range, kl_coef=kl_coef, max_ratio=max_ratio)
    return Algorithm(select=(disjoint_pairs,), objective=(loss,), epochs=epochs, minibatches=minibatches)
