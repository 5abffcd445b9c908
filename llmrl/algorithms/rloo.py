"""REINFORCE leave-one-out."""

from __future__ import annotations

from functools import partial
from typing import Literal

from llmrl.advantages.group import leave_one_out
from llmrl.algorithm import Algorithm
from llmrl.combiners.kl_in_reward import kl_in_reward
from llmrl.combiners.weighted_sum import weighted_sum
from llmrl.config import NotNegative
from llmrl.objectives.reinforce import reinforce
from llmrl.objectives.sequence import rloo_clip


def rloo(
    *,
    kl_coef: NotNegative = 0.03,
    form: Literal["reinforce", "clip"] = "reinforce",
    clip_low: NotNegative = 0.2,
    clip_high: NotNegative = 0.2,
) -> Algorithm:
    """The mean reward of the siblings as baseline, the whole answer as one action (arXiv:2402.14740).

    kl_coef: KL to the reference in the reward of an answer; 0 needs no reference policy. form reinforce: the paper's, on
    policy. form clip: TRL's, with the clipped ratio of whole answers (clip_low, clip_high), for several updates a batch.
    """
    penalty = partial(kl_in_reward, kl_coef=kl_coef, per_token=False)
    clipped = partial(rloo_clip, clip_low=clip_low, clip_high=clip_high)
    return Algorithm(
        combine=(weighted_sum, penalty) if kl_coef else (weighted_sum,),
        advantage=leave_one_out,
        objective=(reinforce if form == "reinforce" else clipped,),
        reduce="sequence_sum",
    )
