"""GRPO for several rewards."""

from __future__ import annotations

from functools import partial

from llmrl.advantages import gdpo as advantages
from llmrl.algorithm import Algorithm
from llmrl.config import NotNegative
from llmrl.objectives.policy import clipped_surrogate


def gdpo(*, clip_low: NotNegative = 0.2, clip_high: NotNegative = 0.2) -> Algorithm:
    """Each scorer standardised within the group by itself, their weighted sum over the batch (arXiv:2601.05242)."""
    return Algorithm(
        advantage=advantages.gdpo,
        objective=(partial(clipped_surrogate, clip_low=clip_low, clip_high=clip_high),),
        reduce="sequence_mean",
    )
