"""Polychromic policy optimisation."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from llmrl.advantages.polychromic import polychromic
from llmrl.algorithm import Algorithm
from llmrl.algorithms.grpo import grpo
from llmrl.config import NotNegative, Positive


def poly_ppo(
    *,
    set_size: Positive = 4,
    max_sets: Positive = 500,
    kl_coef: NotNegative = 0.0,
    epochs: Positive = 1,
    minibatches: Positive = 1,
) -> Algorithm:
    """Rollouts are credited as members of sets, by the set's mean reward times its diversity (arXiv:2509.25424).

    data.signature says when two answers are the same. Groups that are all right still have credit: do not add dynamic
    sampling. The paper's sets are continuations of states within an episode; here they are a prompt's rollouts.
    """
    base = grpo(kl_coef=kl_coef, epochs=epochs, minibatches=minibatches)
    return replace(base, advantage=partial(polychromic, set_size=set_size, max_sets=max_sets))
