"""REBEL."""

from __future__ import annotations

from functools import partial

from llmrl.algorithm import Algorithm
from llmrl.combiners.kl_in_reward import kl_in_reward
from llmrl.combiners.weighted_sum import weighted_sum
from llmrl.config import NotNegative, Positive
from llmrl.objectives import rebel as objectives
from llmrl.selections.pairs import disjoint_pairs


def rebel(
    *, eta: NotNegative = 1.0, kl_coef: NotNegative = 0.05, epochs: Positive = 4, minibatches: Positive = 1
) -> Algorithm:
    """The change of two answers' log-probabilities fitted to eta times their difference in reward (arXiv:2404.16767).

    Exact, it is one step of natural policy gradient. kl_coef: of the KL to the reference in the reward; 0 needs none.
    """
    in_reward = (partial(kl_in_reward, kl_coef=kl_coef, per_token=False),) if kl_coef else ()
    return Algorithm(
        combine=(weighted_sum, *in_reward),
        select=(disjoint_pairs,),
        objective=(partial(objectives.rebel, eta=eta),),
        epochs=epochs,
        minibatches=minibatches,
    )
