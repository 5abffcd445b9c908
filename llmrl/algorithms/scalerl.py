"""ScaleRL."""

from __future__ import annotations

from functools import partial

from llmrl.advantages import batch
from llmrl.algorithm import Algorithm
from llmrl.config import AboveZero
from llmrl.objectives.weighted import cispo_rollout
from llmrl.selections.dynamic_sampling import dynamic_sampling


def scalerl(*, ratio_max: AboveZero = 5.0) -> Algorithm:
    """CISPO against the sampler, rewards on the batch's scale, a mean over prompts (arXiv:2510.13786).

    Groups without spread are dropped and not replaced. The paper also stops drawing prompts that are solved nine times in
    ten, and runs asynchronously; neither is part of the loss.
    """
    return Algorithm(
        select=(partial(dynamic_sampling, max_batches=1),),
        advantage=batch.scalerl,
        objective=(partial(cispo_rollout, ratio_max=ratio_max),),
        reduce="group_mean",
    )
