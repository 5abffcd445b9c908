"""Heterogeneous adaptive policy optimisation."""

from __future__ import annotations

from functools import partial

from llmrl.advantages.hapo import hapo_group
from llmrl.algorithm import Algorithm
from llmrl.config import AboveZero, NotNegative, Positive, Share
from llmrl.objectives import hapo as objectives
from llmrl.sampling.hapo import HapoTemperature
from llmrl.selections.dynamic_sampling import dynamic_sampling
from llmrl.shaping.hapo import hapo_redistribution, hapo_scores


def hapo(
    *,
    tau: NotNegative = 0.05,
    quantile: Share = 0.8,
    beta: NotNegative = 1.0,
    clip_low: NotNegative = 0.2,
    clip_high: NotNegative = 0.2,
    clip_scale: float = 1.0,
    dual_clip: AboveZero | None = 10.0,
    released_sign: bool = False,
    epochs: Positive = 1,
    minibatches: Positive = 16,
) -> Algorithm:
    """A token's entropy sets its temperature, its share of the credit and its clip range (arXiv:2509.16591).

    tau: how far the temperature moves; beta, clip_scale: how far credit and clip move; 0 switches each off.
    """
    ranges = {"clip_low": clip_low, "clip_high": clip_high, "clip_scale": clip_scale}
    return Algorithm(
        sampling=HapoTemperature(tau=tau, quantile=quantile),
        select=(dynamic_sampling,),
        advantage=hapo_group,
        prepare=(
            partial(hapo_scores, quantile=quantile, released_sign=released_sign),
            partial(hapo_redistribution, beta=beta, **ranges),
        ),
        objective=(partial(objectives.hapo, dual_clip=dual_clip, **ranges),),
        reduce="token_mean",
        epochs=epochs,
        minibatches=minibatches,
    )
