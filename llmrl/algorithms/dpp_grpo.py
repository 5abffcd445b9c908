"""GRPO with a reward for what an answer adds to the diversity of its group."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from llmrl.advantages.dpp import dpp
from llmrl.algorithm import Algorithm
from llmrl.algorithms.grpo import grpo
from llmrl.config import NotNegative, Positive


def dpp_grpo(
    *,
    reward_coef: float = 0.5,
    diversity_coef: float = 0.5,
    gate: bool = True,
    kl_coef: NotNegative = 0.0,
    epochs: Positive = 1,
    minibatches: Positive = 1,
) -> Algorithm:
    """Half the reward, half the gain in log det of the group's similarities, for right answers (arXiv:2511.20647).

    gate: wrong answers earn nothing by being different. Adapted from prompts for videos, where a curated set takes the
    place of the group.
    """
    credit = partial(dpp, reward_coef=reward_coef, diversity_coef=diversity_coef, gate=gate)
    return replace(grpo(kl_coef=kl_coef, epochs=epochs, minibatches=minibatches), advantage=credit)
