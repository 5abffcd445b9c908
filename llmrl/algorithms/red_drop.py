"""RED-Drop."""

from __future__ import annotations

from functools import partial

from llmrl.advantages import rec as advantages
from llmrl.algorithm import Algorithm
from llmrl.objectives import rec as objectives
from llmrl.selections import red


def red_drop(*, seed: int = 0) -> Algorithm:
    """REINFORCE on groups whose failures are thinned out to the number of successes (arXiv:2509.24203)."""
    return Algorithm(
        select=(partial(red.red_drop, seed=seed),),
        advantage=advantages.rec,
        objective=(partial(objectives.rec, mask="none"),),
        reduce="token_mean",
    )
