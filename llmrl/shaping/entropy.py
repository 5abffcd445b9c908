"""Entropy of a token as a share of its credit, or as what decides whether it is trained on."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from llmrl.config import Share


def entropy_advantage(
    advantages: Tensor, old_entropy: Tensor, loss_mask: Tensor, *, alpha: float = 0.4, kappa: float = 2.0
) -> Tensor:
    """A + min(alpha · H, |A| / kappa) (arXiv:2506.14758); [B,T] each. With kappa above 1 the sign of A stays."""
    entropy, given = (torch.where(loss_mask, x, 0.0) for x in (old_entropy, advantages))
    return given + torch.minimum(alpha * entropy, given.abs() / kappa)


def top_entropy_mask(old_entropy: Tensor, loss_mask: Tensor, *, share: Share = 0.2) -> dict[str, Tensor]:
    """Weight 1 for tokens whose entropy reaches the batch's (1 - share) quantile, 0 for the others (arXiv:2506.01939).

    [B,T] each. The others stay in the loss's divisor, as in the paper and in TRL.
    """
    counted = old_entropy[loss_mask]
    if not len(counted):
        return {"weights": torch.ones_like(old_entropy)}
    # the smallest value at or above the interpolated quantile; 1e-9 takes back what rounding of 1 - share adds
    place = math.ceil((1 - share) * (len(counted) - 1) - 1e-9)
    floor = counted.sort().values[place]
    return {"weights": (torch.where(loss_mask, old_entropy, -torch.inf) >= floor).to(old_entropy.dtype)}
