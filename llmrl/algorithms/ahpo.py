"""Adaptive hybrid policy optimisation."""

from __future__ import annotations

from functools import partial

from llmrl.advantages.ahpo import ahpo_gate
from llmrl.advantages.group import standardised
from llmrl.algorithm import Algorithm, Extra
from llmrl.config import Natural, NotNegative, Positive
from llmrl.objectives import ahpo as objectives
from llmrl.objectives.policy import clipped_surrogate


def ahpo(
    *,
    min_right: Natural = 1,
    clip_low: NotNegative = 0.2,
    clip_high: NotNegative = 0.2,
    epochs: Positive = 1,
    minibatches: Positive = 1,
) -> Algorithm:
    """GRPO, and likelihood of the expert's answer to a prompt while fewer than min_right rollouts are right (arXiv:2510.08540).

    The expert's answers are the completions in the data of the prompts themselves; a prompt without one has rollouts only.
    """
    expert = Extra(
        (objectives.ahpo,), source="stored", reduce="sequence_mean", gate=partial(ahpo_gate, min_right=min_right)
    )
    return Algorithm(
        advantage=standardised,
        objective=(partial(clipped_surrogate, clip_low=clip_low, clip_high=clip_high),),
        extra=(expert,),
        reduce="sequence_mean",
        epochs=epochs,
        minibatches=minibatches,
    )
