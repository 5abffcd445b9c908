"""Whether credit goes to what is already probable, which is what drains entropy."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from llmrl.ops.masked import masked_mean


def covariance(advantages: Tensor, old_logprobs: Tensor, loss_mask: Tensor) -> dict[str, float]:
    """Covariance of advantage and log-probability over the batch's tokens; positive while entropy falls.

    [B,T] each. entropy/covariance: the mean of (A - mean A)(log p - mean log p) (arXiv:2505.22617, section 3);
    entropy/covariance_max: its largest value at one token.
    """
    centred = [torch.where(loss_mask, x - masked_mean(x, loss_mask), 0.0) for x in (advantages, old_logprobs)]
    product = centred[0] * centred[1]
    largest = product[loss_mask].max() if loss_mask.any() else 0.0
    return {"entropy/covariance": float(masked_mean(product, loss_mask)), "entropy/covariance_max": float(largest)}


def entropy_change(
    logits: Tensor, advantages: Tensor, *, step_size: float, gradient: Literal["policy", "natural"] = "policy"
) -> Tensor:
    """First-order change of a softmax state's entropy in one step: -Cov_{a~pi}(log pi(a), change of its logit).

    logits, advantages [..., actions] -> [...]. The logit moves by step_size · A for the natural gradient and by
    step_size · pi(a) A for the policy gradient (arXiv:2505.22617, section 3).
    """
    logprobs = logits.log_softmax(-1)
    probabilities = logprobs.exp()
    moved = step_size * advantages * (probabilities if gradient == "policy" else 1.0)

    def mean(x: Tensor) -> Tensor:
        return (probabilities * x).sum(-1)

    return mean(logprobs) * mean(moved) - mean(logprobs * moved)
