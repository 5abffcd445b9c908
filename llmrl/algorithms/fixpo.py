"""FixPO."""

from __future__ import annotations

import math
from functools import partial

from llmrl.advantages.gae import gae
from llmrl.algorithm import Algorithm
from llmrl.config import Natural, NotNegative, Positive, Share
from llmrl.objectives.policy import clipped_surrogate
from llmrl.objectives.value import value
from llmrl.regularizers.entropy import entropy_bonus
from llmrl.regularizers.fixpo import FixpoPenalty, SampledFixpoPenalty
from llmrl.updates.fixpo import Fixpo


def fixpo(
    *,
    bound: float = 0.2,
    target_coef: float = 2.0,
    beta: NotNegative = 1.0,
    beta_learning_rate: float = 0.01,
    value_coef: NotNegative = 0.5,
    entropy_coef: float = 0.0,
    gae_lambda: Share = 0.95,
    max_steps: Natural = 100,
    exact: bool = True,
    epochs: Positive = 4,
    minibatches: Positive = 4,
) -> Algorithm:
    """PPO without its clip: a KL penalty, and a second phase that leaves no token past `bound` (arXiv:2312.05405).

    The KL is exact, over the vocabulary at every token; without `exact` it is estimated from the sampled tokens, where a pass
    over the vocabulary is too much, and the bound is on the estimate. epochs and minibatches are ours, as for PPO.
    """
    penalty = FixpoPenalty if exact else SampledFixpoPenalty
    return Algorithm(
        advantage=partial(gae, gae_lambda=gae_lambda),
        objective=(
            partial(clipped_surrogate, clip_low=math.inf, clip_high=math.inf),
            partial(value, value_coef=value_coef, value_clip=None),
        ),
        regularizers=(
            penalty(bound=bound, target_coef=target_coef, beta=beta, beta_learning_rate=beta_learning_rate),
            *((partial(entropy_bonus, entropy_coef=entropy_coef),) if entropy_coef else ()),
        ),
        update=Fixpo(bound=bound, max_steps=max_steps),
        reduce="token_mean",
        epochs=epochs,
        minibatches=minibatches,
    )
