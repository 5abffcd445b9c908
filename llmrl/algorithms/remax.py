"""ReMax: the greedy answer as baseline."""

from __future__ import annotations

from functools import partial

from llmrl.advantages import reinforce as advantages
from llmrl.algorithm import Algorithm
from llmrl.combiners.kl_in_reward import kl_in_reward
from llmrl.combiners.weighted_sum import weighted_sum
from llmrl.config import NotNegative
from llmrl.objectives.reinforce import reinforce


def remax(*, kl_coef: NotNegative = 0.05) -> Algorithm:
    """REINFORCE against the reward of one greedy answer to each prompt, no critic (arXiv:2310.10505).

    kl_coef: KL to the reference in the reward of an answer; 0 needs no reference policy. The authors' code discounts the
    reward along the tokens by 0.99; here the whole answer is one action. On-policy: one update a batch.
    """
    penalty = partial(kl_in_reward, kl_coef=kl_coef, per_token=False)
    return Algorithm(
        combine=(weighted_sum, penalty) if kl_coef else (weighted_sum,),
        advantage=advantages.remax,
        objective=(reinforce,),
        reduce="sequence_sum",
    )
