"""Likelihood of other text beside the rollouts, against forgetting."""

from __future__ import annotations

from torch import Tensor

from llmrl.batch import Loss
from llmrl.config import NotNegative


def ptx(logprobs: Tensor, *, ptx_coef: NotNegative = 1.0) -> Loss:
    """-ptx_coef · logprobs of demonstrations or pretraining text; [B,T] (PPO-ptx, arXiv:2203.02155, eq. 2).

    Made for a batch of its own: `extra: {objective: ptx}` reads the recipe's extra_data.
    """
    return Loss(-ptx_coef * logprobs)
