"""Proximal policy optimisation with a critic."""

from __future__ import annotations

from functools import partial

from llmrl.advantages.gae import gae
from llmrl.algorithm import Algorithm
from llmrl.combiners.kl_in_reward import kl_in_reward
from llmrl.combiners.weighted_sum import weighted_sum
from llmrl.config import NotNegative, Positive, Share
from llmrl.objectives.policy import clipped_surrogate
from llmrl.objectives.value import value


def ppo(
    *,
    clip_low: NotNegative = 0.2,
    clip_high: NotNegative = 0.2,
    value_coef: NotNegative = 0.1,
    value_clip: NotNegative | None = 0.2,
    gamma: Share = 1.0,
    gae_lambda: Share = 0.95,
    kl_coef: NotNegative = 0.05,
    epochs: Positive = 2,
    minibatches: Positive = 2,
) -> Algorithm:
    """Clipped surrogate and a clipped value loss, KL to the reference in the reward (arXiv:1707.06347, arXiv:2203.02155).

    The critic is a scalar head on the policy's own trunk. kl_coef 0 needs no reference policy.
    """
    return Algorithm(
        combine=(weighted_sum, partial(kl_in_reward, kl_coef=kl_coef)) if kl_coef else (weighted_sum,),
        advantage=partial(gae, gamma=gamma, gae_lambda=gae_lambda),
        objective=(
            partial(clipped_surrogate, clip_low=clip_low, clip_high=clip_high),
            partial(value, value_coef=value_coef, value_clip=value_clip),
        ),
        reduce="token_mean",
        epochs=epochs,
        minibatches=minibatches,
    )
