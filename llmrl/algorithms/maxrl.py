"""Maximum-likelihood reinforcement learning."""

from __future__ import annotations

from functools import partial

from llmrl.advantages import group
from llmrl.algorithm import Algorithm
from llmrl.config import NotNegative
from llmrl.objectives.policy import clipped_surrogate


def maxrl(*, clip_low: NotNegative = 0.2, clip_high: NotNegative = 0.2) -> Algorithm:
    """Centred rewards over the group's success rate: rare successes weigh more, as in log-likelihood (arXiv:2602.02710)."""
    return Algorithm(
        advantage=group.maxrl,
        objective=(partial(clipped_surrogate, clip_low=clip_low, clip_high=clip_high),),
        reduce="token_mean",
    )
