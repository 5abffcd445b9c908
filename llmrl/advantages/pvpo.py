"""Credit relative to what the reference policy earns on the prompt."""

from __future__ import annotations

import torch
from torch import Tensor


def pvpo(rewards: Tensor, anchor_rewards: Tensor) -> Tensor:
    """r - V, V the mean reward of the reference policy's rollouts, made ahead (PVPO, arXiv:2508.21104); [B] each.

    No statistic of the group, so it works with one rollout a prompt, and a group that is all right gets 1 - V. Raises
    ValueError when a prompt has no anchor.
    """
    if anchor_rewards.isnan().any():
        raise ValueError(f"{int(anchor_rewards.isnan().sum())} rollouts belong to prompts without an anchor reward")
    return rewards - anchor_rewards


def pvpo_gate(anchor_rewards: Tensor, *, unsolved: float = 0.0) -> Tensor:
    """1 - V where V <= `unsolved`, else 0: credit of a right answer from elsewhere to a prompt that the reference never solves.

    arXiv:2508.21104, whose answers come from a stronger policy. [B] -> [B].
    """
    return torch.where(anchor_rewards <= unsolved, 1 - anchor_rewards, 0.0)
