"""Group-relative REINFORCE, off policy."""

from __future__ import annotations

from functools import partial
from typing import Literal

from llmrl.advantages import rec as advantages
from llmrl.algorithm import Algorithm
from llmrl.config import NotNegative
from llmrl.objectives import rec as objectives


def rec(
    *,
    mask: Literal["one_side", "two_side", "ring", "none"] = "one_side",
    weight: Literal["none", "is", "tis", "advantage"] = "none",
    clip_low: NotNegative = 0.2,
    clip_high: NotNegative = 0.2,
    standardise: bool = False,
) -> Algorithm:
    """REINFORCE on centred rewards; what keeps it safe off policy is the clip and not the ratio (arXiv:2509.24203).

    mask and weight name the paper's variants: one_side with none is REC-OneSide-NoIS, with `is` the gradient of PPO's clip.
    """
    return Algorithm(
        advantage=partial(advantages.rec, standardise=standardise),
        objective=(partial(objectives.rec, mask=mask, weight=weight, clip_low=clip_low, clip_high=clip_high),),
        reduce="token_mean",
    )
