"""Beta normalisation policy optimisation."""

from __future__ import annotations

from functools import partial

from llmrl.advantages import bnpo as advantages
from llmrl.algorithm import Algorithm
from llmrl.config import NotNegative
from llmrl.objectives.policy import clipped_surrogate


def bnpo(
    *,
    decompose: bool = False,
    low: float = 0.0,
    high: float = 1.0,
    clip_low: NotNegative = 0.2,
    clip_high: NotNegative = 0.28,
) -> Algorithm:
    """Centred rewards over a Beta density that follows the success rates of the batch (arXiv:2506.02864).

    decompose: each scorer by itself, then their mean. low, high: the range of the rewards, which is scaled to 0 and 1.
    """
    return Algorithm(
        advantage=partial(advantages.bnpo, decompose=decompose, low=low, high=high),
        objective=(partial(clipped_surrogate, clip_low=clip_low, clip_high=clip_high),),
        reduce="sequence_sum",
    )
