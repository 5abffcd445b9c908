"""REINFORCE++."""

from __future__ import annotations

from functools import partial

from llmrl.advantages import reinforce_pp as advantages
from llmrl.algorithm import Algorithm
from llmrl.combiners.kl_in_reward import kl_in_reward
from llmrl.combiners.weighted_sum import weighted_sum
from llmrl.config import NotNegative, Share
from llmrl.objectives.policy import clipped_surrogate
from llmrl.regularizers.kl import kl_k2


def reinforce_pp(
    *,
    baseline: bool = False,
    gamma: Share = 1.0,
    kl_coef: NotNegative = 0.01,
    clip_low: NotNegative = 0.2,
    clip_high: NotNegative = 0.2,
) -> Algorithm:
    """Rewards still to come, whitened over the whole batch, with PPO's clip and no critic (arXiv:2501.03262).

    KL to the reference is in the reward of each token. baseline: the group's mean is taken off first, and the penalty
    moves into the loss as k2, for groups of answers. kl_coef 0 needs no reference policy.
    """
    penalised = (weighted_sum, partial(kl_in_reward, kl_coef=kl_coef))
    in_loss = (partial(kl_k2, kl_coef=kl_coef),)
    return Algorithm(
        combine=penalised if kl_coef and not baseline else (weighted_sum,),
        advantage=advantages.reinforce_pp_baseline if baseline else partial(advantages.reinforce_pp, gamma=gamma),
        objective=(partial(clipped_surrogate, clip_low=clip_low, clip_high=clip_high),),
        regularizers=in_loss if kl_coef and baseline else (),
        reduce="token_mean",
    )
