"""Blockwise advantage estimation."""

from __future__ import annotations

from functools import partial
from typing import Literal

from llmrl.advantages import blockwise as advantages
from llmrl.algorithm import Algorithm
from llmrl.config import NotNegative, Positive
from llmrl.objectives import blockwise as objectives


def blockwise(
    *,
    baseline: Literal["outcome", "group", "batch", "none"] = "outcome",
    clip_low: NotNegative = 0.2,
    clip_high: NotNegative = 0.2,
    epochs: Positive = 1,
    minibatches: Positive = 1,
) -> Algorithm:
    """Each segment of an answer is credited by its own scorer and weighs the same (arXiv:2602.10231).

    data.blocks names the segments' tags, scorer k judges segment k. baseline: what later segments are measured against;
    outcome is the mean over rollouts whose first segment scored the same.
    """
    return Algorithm(
        advantage=partial(advantages.blockwise, baseline=baseline),
        objective=(partial(objectives.blockwise, clip_low=clip_low, clip_high=clip_high),),
        reduce="sequence_sum",
        epochs=epochs,
        minibatches=minibatches,
    )
