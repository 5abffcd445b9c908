"""Advantage-weighted regression."""

from __future__ import annotations

from functools import partial

from llmrl.advantages.gae import gae
from llmrl.algorithm import Algorithm
from llmrl.combiners.kl_in_reward import kl_in_reward
from llmrl.combiners.weighted_sum import weighted_sum
from llmrl.config import AboveZero, NotNegative, Positive, Share
from llmrl.objectives import apa as objectives
from llmrl.objectives.value import value


def awr(
    *,
    temperature: AboveZero = 2.0,
    max_weight: AboveZero | None = None,
    kl_coef: NotNegative = 0.05,
    value_coef: NotNegative = 1.0,
    gae_lambda: Share = 0.95,
    epochs: Positive = 2,
    minibatches: Positive = 4,
) -> Algorithm:
    """Likelihood of what was sampled, weighted by exp(A / temperature) (arXiv:1910.00177).

    The defaults are those of the runs on HH in arXiv:2306.02231, with the critic and the penalty of their APA.
    """
    return Algorithm(
        combine=(weighted_sum, partial(kl_in_reward, kl_coef=kl_coef)),
        advantage=partial(gae, gae_lambda=gae_lambda),
        objective=(
            partial(objectives.awr, temperature=temperature, max_weight=max_weight),
            partial(value, value_coef=value_coef, value_clip=None),
        ),
        reduce="token_mean",
        epochs=epochs,
        minibatches=minibatches,
    )
