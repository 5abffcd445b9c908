"""Entropy-modulated policy gradients."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from llmrl.algorithm import Algorithm
from llmrl.algorithms.grpo import grpo
from llmrl.config import NotNegative, Positive
from llmrl.shaping import empg as shaping


def empg(
    *,
    sharpness: float = 1.0,
    bonus_sharpness: float = 1.0,
    bonus_coef: NotNegative = 0.1,
    clip_low: NotNegative = 0.2,
    clip_high: NotNegative = 0.2,
    epochs: Positive = 1,
    minibatches: Positive = 1,
) -> Algorithm:
    """GRPO whose credit is larger on steps the policy was sure of, with a bonus for clear next steps (arXiv:2509.09265).

    For episodes of several turns, each of them a step; single answers have one step, on which only the first acts.
    """
    shaped = partial(shaping.empg, sharpness=sharpness, bonus_sharpness=bonus_sharpness, bonus_coef=bonus_coef)
    base = grpo(clip_low=clip_low, clip_high=clip_high, epochs=epochs, minibatches=minibatches)
    return replace(base, shaping=(shaped,))
