"""Process rewards beside the outcome."""

from __future__ import annotations

import torch
from torch import Tensor

from llmrl.ops.masked import last_counted


def process_rewards(
    rewards: Tensor, step_rewards: Tensor, loss_mask: Tensor, *, outcome_coef: float = 1.0, step_coef: float = 1.0
) -> Tensor:
    """outcome_coef · reward on the last counted token + step_coef · each step's own on the token that it ends with.

    rewards [B], the rest [B,T] -> token_rewards [B,T], for an advantage that reads them, such as gae. A scorer that
    judges steps also gives a value, which is part of `rewards`; its option `aggregate: none` leaves it out.
    """
    outcome = outcome_coef * rewards[:, None] * last_counted(loss_mask)
    return outcome + step_coef * torch.where(loss_mask, step_rewards, 0.0)
