"""The surrogate in which every segment of an answer weighs the same, however long it is."""

from __future__ import annotations

import torch
from torch import Tensor

from llmrl.batch import Loss
from llmrl.config import NotNegative
from llmrl.objectives.policy import clipped_surrogate


def blockwise(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    block_ids: Tensor,
    loss_mask: Tensor,
    *,
    clip_low: NotNegative = 0.2,
    clip_high: NotNegative = 0.2,
) -> Loss:
    """PPO's surrogate divided by the counted tokens of the token's own block (arXiv:2602.10231, section 4.3); [B,T].

    With the reduction `sequence_sum` a row's loss is the sum over its blocks of their means. Tokens outside every block
    have no loss; an empty block adds nothing.
    """
    surrogate = clipped_surrogate(logprobs, old_logprobs, advantages, clip_low=clip_low, clip_high=clip_high)
    share = torch.zeros(loss_mask.shape, device=loss_mask.device)
    for block in block_ids[block_ids >= 0].unique().tolist():
        here = loss_mask & (block_ids == block)
        share = torch.where(here, 1 / here.sum(1, keepdim=True).clamp(min=1), share)
    return Loss(surrogate.values * share, stats=surrogate.stats)
