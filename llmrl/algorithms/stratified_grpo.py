"""GRPO within rollouts of like structure."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from llmrl.advantages.stratified import stratified
from llmrl.algorithm import Algorithm
from llmrl.algorithms.grpo import grpo
from llmrl.config import Natural, NotNegative, Positive


def stratified_grpo(
    *,
    alpha: float = 0.6,
    max_stratum: Natural = 3,
    kl_coef: NotNegative = 0.0,
    epochs: Positive = 1,
    minibatches: Positive = 1,
) -> Algorithm:
    """Credit among rollouts with as many tool calls, blended with credit among all of the prompt (arXiv:2510.06214).

    alpha: the share of the first; 0.6 to 0.8 is reported. `max_stratum` calls or more are one class.
    """
    base = grpo(kl_coef=kl_coef, epochs=epochs, minibatches=minibatches)
    return replace(base, advantage=partial(stratified, alpha=alpha, max_stratum=max_stratum))
