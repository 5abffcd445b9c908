"""Decoupled PPO, for rollouts of older weights."""

from __future__ import annotations

from functools import partial

from llmrl.advantages.group import standardised
from llmrl.algorithm import Algorithm
from llmrl.config import AboveZero, NotNegative, Positive
from llmrl.objectives import decoupled


def decoupled_ppo(
    *,
    clip_low: NotNegative = 0.2,
    clip_high: NotNegative = 0.2,
    cap: AboveZero | None = None,
    epochs: Positive = 1,
    minibatches: Positive = 4,
) -> Algorithm:
    """PPO's clip around the policy that the updates began with, weighted from the one that sampled (arXiv:2505.24298).

    cap: tokens with a larger weight are left out.
    """
    return Algorithm(
        advantage=standardised,
        objective=(partial(decoupled.decoupled_ppo, clip_low=clip_low, clip_high=clip_high, cap=cap),),
        reduce="token_mean",
        epochs=epochs,
        minibatches=minibatches,
    )
