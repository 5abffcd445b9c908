"""Adaptive layerwise perturbation."""

from __future__ import annotations

from functools import partial
from typing import Literal

from llmrl import catalog
from llmrl.advantages.group import standardised
from llmrl.algorithm import Algorithm
from llmrl.config import AboveZero, NotNegative, Positive
from llmrl.objectives import alp as objectives


def alp(
    *,
    sigma: float = 1e-6,
    noise_learning_rate: float = 5e-4,
    level: Literal["token", "sequence", "geometric"] = "sequence",
    clip_low: NotNegative = 0.2,
    clip_high: NotNegative = 0.28,
    dual_clip: AboveZero | None = 3.0,
    epochs: Positive = 1,
    minibatches: Positive = 1,
) -> Algorithm:
    """Trained with learned noise on every layer's input, against the engine's own log-probabilities (arXiv:2603.19470).

    sigma and noise_learning_rate are those of the single-turn runs; the multi-turn runs have 1e-8 and 1e-2.
    """
    layer_noise = catalog.get("perturbations", "layer_noise")  # by name: the mathematics does not import models
    return Algorithm(
        advantage=standardised,
        objective=(partial(objectives.alp, level=level, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip),),
        perturb=layer_noise(sigma=sigma, learning_rate=noise_learning_rate),
        reduce="token_mean",
        epochs=epochs,
        minibatches=minibatches,
    )
