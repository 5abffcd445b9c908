"""Policy optimisation against a value estimated beforehand."""

from __future__ import annotations

import math
from functools import partial

from llmrl.advantages import pvpo as advantages
from llmrl.algorithm import Algorithm, Before, Extra
from llmrl.config import Natural, NotNegative, Positive
from llmrl.objectives.policy import clipped_surrogate
from llmrl.objectives.reinforce import reinforce
from llmrl.selections.prompts import pvpo_presample


def pvpo(
    *,
    num_samples: Positive = 8,
    refresh_every: Natural = 500,
    clip_low: NotNegative = 0.2,
    clip_high: NotNegative = 0.2,
    answer_coef: float = 0.0,
    epochs: Positive = 1,
    minibatches: Positive = 1,
) -> Algorithm:
    """Reward less what the reference policy earned on the prompt, measured ahead of training (arXiv:2508.21104).

    Prompts that it always or never solves are left out. No group statistic, so one rollout a prompt is enough; do not
    add dynamic sampling, which would drop groups that have credit here. How often the paper measures anew is not known.
    answer_coef above 0 keeps the prompts that it never solves and trains on the right answer that came with their data,
    beside the rollouts, with the credit 1 - V and the ratio 1; at 1 / group_size it weighs as much as a rollout.
    """
    answer = Extra(
        (reinforce,), source="stored", coefficient=answer_coef, reduce="sequence_mean", gate=advantages.pvpo_gate
    )
    return Algorithm(
        before=Before(num_samples=num_samples, refresh_every=refresh_every),
        select=(partial(pvpo_presample, unsolved=-math.inf) if answer_coef else pvpo_presample,),
        extra=(answer,) if answer_coef else (),
        advantage=advantages.pvpo,
        objective=(partial(clipped_surrogate, clip_low=clip_low, clip_high=clip_high),),
        reduce="token_mean",
        epochs=epochs,
        minibatches=minibatches,
    )
