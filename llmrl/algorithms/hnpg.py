"""Hybrid natural policy gradient, for language models."""

from __future__ import annotations

from functools import partial

from llmrl.advantages.hnpg import hnpg_critic
from llmrl.algorithm import Algorithm, Extra
from llmrl.config import NotNegative, Positive, Share
from llmrl.objectives import hnpg as objectives
from llmrl.objectives.policy import clipped_surrogate


def hnpg(
    *,
    clip_low: NotNegative = 0.2,
    clip_high: NotNegative = 0.2,
    value_coef: NotNegative = 1.0,
    gae_lambda: Share = 0.97,
    offline_coef: float = 1.0,
    epochs: Positive = 1,
    minibatches: Positive = 1,
) -> Algorithm:
    """A critic of every token, fitted on rollouts and on demonstrations alike, teaches the policy on both (arXiv:2311.08384).

    Demonstrations are the recipe's extra_data, scored as rollouts are; offline_coef weighs their half. Ours: PPO's clip in
    place of a TRPO step, the exact expectation over the policy's tokens at the demonstrations' prefixes in place of a
    draw, each half averaged over its own tokens, one network for policy and critic.
    """
    return Algorithm(
        advantage=partial(hnpg_critic, gae_lambda=gae_lambda),
        objective=(
            partial(clipped_surrogate, clip_low=clip_low, clip_high=clip_high),
            partial(objectives.hnpg_online, value_coef=value_coef),
        ),
        extra=(Extra((partial(objectives.hnpg, value_coef=value_coef),), coefficient=offline_coef),),
        reduce="token_mean",
        epochs=epochs,
        minibatches=minibatches,
    )
