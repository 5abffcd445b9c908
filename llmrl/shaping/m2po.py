"""Which tokens M2PO trains on. Runs before each optimizer mini-batch, over the whole of it."""

from __future__ import annotations

import torch
from torch import Tensor

from llmrl.ops.ratio import log_ratio


def m2po_mask(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, loss_mask: Tensor, *, threshold: float = 0.04
) -> dict[str, Tensor]:
    """weights [B,T]: 0 on the tokens that moved furthest, until the mean (log r)² of the rest is at most the threshold.

    Only tokens already moved the way of their credit take part in the mean and can go: A > 0 and r > 1, or A < 0 and r < 1
    (arXiv:2510.01161). What goes stays in the divisor.
    """
    change = log_ratio(logprobs, old_logprobs)
    led = loss_mask & (((advantages > 0) & (change > 0)) | ((advantages < 0) & (change < 0)))
    places = led.flatten().nonzero().squeeze(1)
    moved, order = (change.flatten()[places].double() ** 2).sort()
    means = moved.cumsum(0) / torch.arange(1, len(moved) + 1, device=moved.device)
    weights = torch.ones_like(change).flatten()
    weights[places[order[means > threshold]]] = 0.0
    return {"weights": weights.reshape(change.shape)}
