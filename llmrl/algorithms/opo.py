"""On-policy RL with the optimal reward baseline."""

from __future__ import annotations

from llmrl.advantages.group import length_weighted
from llmrl.algorithm import Algorithm
from llmrl.objectives.reinforce import reinforce


def opo() -> Algorithm:
    """The group's mean reward a token as baseline, exactly on policy: one update a batch, no clip, no KL (arXiv:2505.23585).

    token_mean has the direction of the paper's sum over an answer's tokens, on a scale that knows no length.
    """
    return Algorithm(advantage=length_weighted, objective=(reinforce,), reduce="token_mean")
