"""The plain policy gradient with a moving baseline."""

from __future__ import annotations

from llmrl.advantages.reinforce import Reinforce
from llmrl.algorithm import Algorithm
from llmrl.config import Share
from llmrl.objectives.reinforce import reinforce as policy_gradient


def reinforce(*, decay: Share = 0.9) -> Algorithm:
    """Reward less the moving mean of past batches, times the likelihood of the whole answer (Williams 1992).

    decay: of the moving mean. On-policy: one update a batch.
    """
    return Algorithm(advantage=Reinforce(decay=decay), objective=(policy_gradient,), reduce="sequence_sum")
