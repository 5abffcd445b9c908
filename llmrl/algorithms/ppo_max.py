"""PPO with what was found to keep it stable."""

from __future__ import annotations

from functools import partial

from llmrl.advantages.gae import gae
from llmrl.algorithm import Algorithm, Extra
from llmrl.combiners.kl_in_reward import kl_in_reward
from llmrl.combiners.ppo_max import PpoMaxNormalisation
from llmrl.combiners.weighted_sum import weighted_sum
from llmrl.config import NotNegative, Share
from llmrl.objectives.policy import clipped_surrogate
from llmrl.objectives.value import value
from llmrl.regularizers.ptx import ptx


def ppo_max(
    *,
    clip_low: NotNegative = 0.2,
    clip_high: NotNegative = 0.2,
    value_coef: NotNegative = 1.0,
    value_clip: NotNegative | None = 0.2,
    gae_lambda: Share = 0.95,
    kl_coef: NotNegative = 0.02,
    reward_clip: NotNegative | None = 0.3,
    centred: bool = True,
    ptx_coef: NotNegative = 0.0,
) -> Algorithm:
    """PPO on rewards normalised and clipped by all that came before, with KL in the reward and ptx (arXiv:2307.04964).

    ptx_coef above 0 mixes in demonstrations of the recipe's extra_data, as the paper does. reward_clip null with centred
    false is the released script, which only divides by the running deviation. Advantages are not whitened.
    """
    return Algorithm(
        combine=(
            weighted_sum,
            PpoMaxNormalisation(reward_clip=reward_clip, centred=centred),
            partial(kl_in_reward, kl_coef=kl_coef),
        ),
        advantage=partial(gae, gae_lambda=gae_lambda, whiten=False),
        objective=(
            partial(clipped_surrogate, clip_low=clip_low, clip_high=clip_high),
            partial(value, value_coef=value_coef, value_clip=value_clip),
        ),
        extra=(Extra(objective=(ptx,), coefficient=ptx_coef),) if ptx_coef else (),
        reduce="token_mean",
    )
