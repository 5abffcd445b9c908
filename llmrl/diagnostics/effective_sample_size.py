"""How much of a batch is left after importance weighting."""

from __future__ import annotations

import torch
from torch import Tensor

from llmrl.ops.masked import masked_sum
from llmrl.ops.ratio import log_ratio


def effective_sample_size(old_logprobs: Tensor, rollout_logprobs: Tensor, loss_mask: Tensor) -> dict[str, float]:
    """(Σ w)² / (n Σ w²), w = exp(old - rollout): 1 on-policy, 1/n when one weight outweighs all; [B,T] each.

    ratio/token_sample_size over tokens; ratio/sequence_sample_size over rows with a token, w the product of theirs.
    """
    change = torch.where(loss_mask, log_ratio(old_logprobs, rollout_logprobs), 0.0)
    rows = loss_mask.any(1)
    return {
        "ratio/token_sample_size": _share(change[loss_mask]),
        "ratio/sequence_sample_size": _share(masked_sum(change, loss_mask, 1)[rows]),
    }


def _share(log_weights: Tensor) -> float:
    if not len(log_weights):
        return 1.0
    weights = (
        log_weights.double() - log_weights.max()
    ).exp()  # the largest cancels: no overflow in a product of ratios
    return float(weights.sum() ** 2 / (len(weights) * (weights**2).sum()))
