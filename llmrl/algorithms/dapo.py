"""Decoupled clip and dynamic sampling."""

from __future__ import annotations

from functools import partial

from llmrl.advantages.group import standardised
from llmrl.algorithm import Algorithm
from llmrl.combiners.length import overlong_penalty
from llmrl.combiners.weighted_sum import weighted_sum
from llmrl.config import NotNegative, Positive
from llmrl.objectives.policy import clipped_surrogate
from llmrl.selections.dynamic_sampling import dynamic_sampling


def dapo(
    *,
    clip_low: NotNegative = 0.2,
    clip_high: NotNegative = 0.28,
    max_batches: Positive = 10,
    max_tokens: int | None = None,
    buffer: int = 4096,
) -> Algorithm:
    """GRPO with a higher upper clip, a mean over all tokens and no groups without spread (arXiv:2503.14476).

    max_batches: batches of prompts that a step may sample to fill up with such groups. max_tokens: adds the soft penalty
    for answers that come within `buffer` tokens of it.
    """
    penalty = partial(overlong_penalty, max_tokens=max_tokens, buffer=buffer)
    return Algorithm(
        combine=(weighted_sum, penalty) if max_tokens else (weighted_sum,),
        select=(partial(dynamic_sampling, max_batches=max_batches),),
        advantage=standardised,
        objective=(partial(clipped_surrogate, clip_low=clip_low, clip_high=clip_high),),
        reduce="token_mean",
    )
