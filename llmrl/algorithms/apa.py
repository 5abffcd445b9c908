"""Advantage-induced policy alignment."""

from __future__ import annotations

from functools import partial

from llmrl.advantages.gae import gae
from llmrl.advantages.rec import opmd
from llmrl.algorithm import Algorithm
from llmrl.combiners.kl_in_reward import kl_in_reward
from llmrl.combiners.weighted_sum import weighted_sum
from llmrl.config import AboveZero, NotNegative, Positive, Share
from llmrl.objectives import apa as objectives
from llmrl.objectives.value import value


def apa(
    *,
    temperature: AboveZero = 0.1,
    kl_coef: NotNegative = 0.05,
    value_coef: NotNegative = 1.0,
    gae_lambda: Share = 0.95,
    soft_baseline: bool = False,
    epochs: Positive = 2,
    minibatches: Positive = 4,
) -> Algorithm:
    """A squared fit of log-probabilities to the initial policy's plus A / temperature, no ratio, no clip (arXiv:2306.02231).

    The defaults are those of the authors' runs on HH. temperature: of the tilt exp(A / temperature). soft_baseline: in place
    of a critic A is the reward less temperature · log mean exp(reward / temperature) of the prompt's rollouts, which estimates
    what makes the tilt of answers of one token add up to 1; value_coef and gae_lambda then mean nothing. Ours.
    """
    critic = (partial(value, value_coef=value_coef, value_clip=None),)
    return Algorithm(
        combine=(weighted_sum, partial(kl_in_reward, kl_coef=kl_coef, per_token=not soft_baseline)),
        advantage=partial(opmd, baseline="log_mean_exp", tau=temperature)
        if soft_baseline
        else partial(gae, gae_lambda=gae_lambda),
        objective=(partial(objectives.apa, temperature=temperature), *(() if soft_baseline else critic)),
        reduce="token_mean",
        epochs=epochs,
        minibatches=minibatches,
    )
