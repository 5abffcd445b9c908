"""GRPO without its two biases."""

from __future__ import annotations

from functools import partial

from llmrl.advantages.group import centred
from llmrl.algorithm import Algorithm
from llmrl.config import NotNegative
from llmrl.objectives.policy import clipped_surrogate


def dr_grpo(*, clip_low: NotNegative = 0.2, clip_high: NotNegative = 0.2) -> Algorithm:
    """Rewards less the group's mean, and a divisor that knows no length: the longest answer allowed (arXiv:2503.20783)."""
    return Algorithm(
        advantage=centred,
        objective=(partial(clipped_surrogate, clip_low=clip_low, clip_high=clip_high),),
        reduce="fixed_length",
    )
