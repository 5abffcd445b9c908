"""Clip-Cov: random tokens of high covariance leave the update."""

from __future__ import annotations

from functools import partial

from llmrl.advantages.group import standardised
from llmrl.algorithm import Algorithm
from llmrl.config import Positive, Share
from llmrl.objectives import covariance
from llmrl.shaping.covariance import clip_cov_selection


def clip_cov(
    *,
    fraction: Share = 2e-4,
    covariance_low: float = 1.0,
    covariance_high: float = 5.0,
    seed: int = 0,
    epochs: Positive = 1,
    minibatches: Positive = 8,
) -> Algorithm:
    """GRPO's credit; entropy is kept up by detaching a few tokens where log-probability and credit agree (arXiv:2505.22617)."""
    chosen = partial(
        clip_cov_selection,
        fraction=fraction,
        covariance_low=covariance_low,
        covariance_high=covariance_high,
        seed=seed,
    )
    return Algorithm(
        advantage=standardised,
        prepare=(chosen,),
        objective=(covariance.clip_cov,),
        reduce="token_mean",
        epochs=epochs,
        minibatches=minibatches,
    )
