"""RED-Weight."""

from __future__ import annotations

from functools import partial

from llmrl.advantages import rec as advantages
from llmrl.algorithm import Algorithm
from llmrl.config import AboveZero
from llmrl.objectives import rec as objectives
from llmrl.selections import red


def red_weight(*, temperature: AboveZero = 1.0) -> Algorithm:
    """REINFORCE with each answer weighted by exp(A / temperature): success weighs more than failure (arXiv:2509.24203)."""
    return Algorithm(
        select=(partial(red.red_weight, temperature=temperature),),
        advantage=advantages.rec,
        objective=(partial(objectives.rec, mask="none"),),
        reduce="token_mean",
    )
