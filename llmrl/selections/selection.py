"""What a selection says of a batch."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Selection(NamedTuple):
    """keep: [B] bool, the rollouts worth training on; None for all. weights: [B,T] or [B], multiplied into `weights`.
    loss_mask: [B,T] bool, tokens that stay counted. pairs: [P,2] rows (better, worse). want_more: batches of prompts that
    may be sampled in all until the step has as many groups as were asked for.
    """

    keep: Tensor | None = None
    weights: Tensor | None = None
    loss_mask: Tensor | None = None
    pairs: Tensor | None = None
    want_more: int = 0
