"""Training for the best of k."""

from __future__ import annotations

from functools import partial
from typing import Literal

from llmrl.advantages.passk import passk_analytic, passk_top
from llmrl.algorithm import Algorithm
from llmrl.config import NotNegative, Positive
from llmrl.objectives.policy import clipped_surrogate


def passk(
    *,
    k: Positive = 4,
    form: Literal["analytic", "top"] = "analytic",
    clip_low: NotNegative = 0.2,
    clip_high: NotNegative = 0.2,
) -> Algorithm:
    """Credit for a group that succeeds in k tries, by its closed form over all sets of k (arXiv:2508.10751).

    form top: only the best answer is credited, by its lead over the second best (arXiv:2503.19595); k plays no part.
    """
    return Algorithm(
        advantage=partial(passk_analytic, k=k) if form == "analytic" else passk_top,
        objective=(partial(clipped_surrogate, clip_low=clip_low, clip_high=clip_high),),
        reduce="token_mean",
    )
