"""Credit relative to the other rollouts of the same prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from llmrl.ops.groups import group_mean, group_spread, group_std


def standardised(rewards: Tensor, group_ids: Tensor, *, eps: float = 1e-6) -> Tensor:
    """(r - mean) / (std + eps) within the group, std with n-1 (GRPO, arXiv:2402.03300, section 4.1).

    rewards, group_ids [B] -> advantages [B]. A group of one, or without spread, gets exactly 0.
    """
    centred = rewards - group_mean(rewards, group_ids)
    scaled = centred / (group_std(rewards, group_ids) + eps)
    return torch.where(group_spread(rewards, group_ids), scaled, torch.zeros_like(scaled))
