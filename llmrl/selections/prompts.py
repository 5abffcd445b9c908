"""Which prompts are sampled at all, by what the reference policy makes of them."""

from __future__ import annotations

from torch import Tensor

from llmrl.selections.selection import Selection


def pvpo_presample(anchor_rewards: Tensor, *, solved: float = 1.0, unsolved: float = 0.0) -> Selection:
    """Drops prompts that the reference policy always or never solves (PVPO, arXiv:2508.21104).

    anchor_rewards [B]: dropped from `solved` on and down to `unsolved`. The paper keeps the unsolved ones where there is a
    stronger policy's answer to learn from: unsolved -inf, and the second batch of method pvpo; without one they are dropped.
    """
    return Selection((anchor_rewards < solved) & (anchor_rewards > unsolved))


def dph_split(anchor_rewards: Tensor, *, mastered: float = 1.0) -> Selection:
    """Keeps the prompts to explore: those that the initial policy did not always solve (DPH-RL, arXiv:2509.07430).

    anchor_rewards [B]. The others, from `mastered` on, are not sampled: their stored answers hold the policy in place.
    """
    return Selection(anchor_rewards < mastered)
