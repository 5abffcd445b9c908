"""Group sequence policy optimisation."""

from __future__ import annotations

from functools import partial

from llmrl.advantages.group import standardised
from llmrl.algorithm import Algorithm
from llmrl.config import NotNegative, Positive
from llmrl.objectives import sequence


def gspo(
    *,
    clip_low: NotNegative = 3e-4,
    clip_high: NotNegative = 4e-4,
    per_token: bool = False,
    epochs: Positive = 1,
    minibatches: Positive = 4,
) -> Algorithm:
    """GRPO with one ratio an answer, the geometric mean of its tokens' (arXiv:2507.18071).

    per_token: the paper's GSPO-token, for credit that differs within an answer.
    """
    objective = sequence.gspo_token if per_token else sequence.gspo
    return Algorithm(
        advantage=standardised,
        objective=(partial(objective, clip_low=clip_low, clip_high=clip_high),),
        reduce="sequence_mean",
        epochs=epochs,
        minibatches=minibatches,
    )
