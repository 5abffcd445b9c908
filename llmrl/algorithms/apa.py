"""Advantage-induced policy alignment."""

from __future__ import annotations

from functools import partial

from llmrl.advantages.gae import gae
from llmrl.algorithm import Algorithm
from llmrl.combiners.kl_in_reward import kl_in_reward
from llmrl.combiners.weighted_sum import weighted_sum
from llmrl.objectives import apa as objectives
from llmrl.objectives.value import value


def apa(
    *,
    temperature: float = 0.1,
    kl_coef: float = 0.05,
    value_coef: float = 1.0,
    gae_lambda: float = 0.95,
    epochs: int = 2,
    minibatches: int = 4,
) -> Algorithm:
    """A squared fit of log-probabilities to the initial policy's plus A / temperature, no ratio, no clip (arXiv:2306.02231).

    The defaults are those of the authors' runs on HH. temperature: of the tilt exp(A / temperature).
    """
    return Algorithm(
        combine=(weighted_sum, partial(kl_in_reward, kl_coef=kl_coef)),
        advantage=partial(gae, gae_lambda=gae_lambda),
        objective=(
            partial(objectives.apa, temperature=temperature),
            partial(value, value_coef=value_coef, value_clip=None),
        ),
        reduce="token_mean",
        epochs=epochs,
        minibatches=minibatches,
    )
