"""Partial policy gradients."""

from __future__ import annotations

from functools import partial

from llmrl.advantages.partial_returns import Mode, partial_returns
from llmrl.algorithm import Algorithm
from llmrl.combiners.process_rewards import process_rewards
from llmrl.combiners.weighted_sum import weighted_sum
from llmrl.config import Positive
from llmrl.objectives.policy import clipped_surrogate
from llmrl.objectives.reinforce import reinforce


def partial_pg(
    *,
    mode: Mode = "full",
    horizon: int | None = None,
    segments: list[int] | None = None,
    offline: bool = False,
    epochs: Positive = 1,
    minibatches: Positive = 1,
) -> Algorithm:
    """Each step is credited with the rewards that it plans for: all later ones, its own, the next few (arXiv:2603.06138).

    Step rewards come from scorers that judge steps; the outcome stands on the last one. offline: stored episodes without
    importance weights or baseline, which is a reward-weighted likelihood and not an unbiased policy gradient.
    """
    credit = partial(partial_returns, mode=mode, horizon=horizon, segments=segments)
    return Algorithm(
        combine=(weighted_sum, process_rewards),
        advantage=partial(credit, baseline="none") if offline else credit,
        objective=(reinforce if offline else clipped_surrogate,),
        reduce="token_mean",
        epochs=epochs,
        minibatches=minibatches,
    )
