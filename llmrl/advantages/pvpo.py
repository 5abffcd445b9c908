"""Credit relative to what the reference policy earns on the prompt."""

from __future__ import annotations

from torch import Tensor


def pvpo(rewards: Tensor, anchor_rewards: Tensor) -> Tensor:
    """r - V, V the mean reward of the reference policy's rollouts, made ahead (PVPO, arXiv:2508.21104); [B] each.

    No statistic of the group, so it works with one rollout a prompt, and a group that is all right gets 1 - V. Raises
    ValueError when a prompt has no anchor.
    """
    if anchor_rewards.isnan().any():
        raise ValueError(
            f"pvpo: {int(anchor_rewards.isnan().sum())} rollouts belong to prompts without an anchor reward"
        )
    return rewards - anchor_rewards
