"""What a selection says of a batch."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Selection(NamedTuple):
    """keep: [B] bool, the rollouts worth training on. want_more: sample further prompts to fill the batch."""

    keep: Tensor
    want_more: bool = False
