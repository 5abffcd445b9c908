"""A nudge towards calling a tool early, which cannot turn a right answer's credit around."""

from __future__ import annotations

import torch
from torch import Tensor

from llmrl.ops.groups import members


def aspo(
    advantages: Tensor,
    rewards: Tensor,
    first_calls: Tensor,
    loss_mask: Tensor,
    group_ids: Tensor,
    *,
    delta: float = -2.0,
    bound: float = 0.7,
    threshold: float = 0.5,
) -> Tensor:
    """A + clip(delta (p - mean p) / mean L, ± bound |A|) for right rollouts that call the tool (arXiv:2508.19201, eq. 2).

    advantages, loss_mask [B,T], the rest [B]. p is the position of the first call, L the length with tool output, both
    means over those rollouts of the prompt: right (reward >= threshold) and with a call. A negative delta rewards early
    calls; a bound below 1 keeps the sign of A. Where all are right A is 0, and so is the change. |A| in the bound, where
    the paper has A, is for graded rewards, whose right rollouts can have negative credit.
    """
    positions = torch.arange(1, loss_mask.shape[1] + 1, device=loss_mask.device)
    lengths = (positions * loss_mask).amax(1) if loss_mask.numel() else loss_mask.sum(1)
    calls = (rewards >= threshold) & (first_calls >= 0) & (lengths > 0)
    change = torch.zeros_like(rewards)
    for rows in members(group_ids):
        rows = rows[calls[rows]]
        if len(rows):
            first = first_calls[rows].to(rewards.dtype)
            change[rows] = delta * (first - first.mean()) / lengths[rows].to(rewards.dtype).mean()
    limit = bound * torch.where(loss_mask, advantages, 0.0).abs()
    return torch.where(loss_mask, advantages + change[:, None].clamp(-limit, limit), 0.0)
