"""The importance-weighted surrogate of M2PO; which of its tokens count is `shaping.m2po_mask`'s choice."""

from __future__ import annotations

from torch import Tensor

from llmrl.batch import Loss
from llmrl.ops.ratio import log_ratio


def m2po(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor) -> Loss:
    """-A r, [B,T], without a clip (arXiv:2510.01161)."""
    return Loss(-advantages * log_ratio(logprobs, old_logprobs).exp())
