"""Selections that keep rollouts of one prompt which differ in outcome."""

from __future__ import annotations

import torch
from torch import Tensor

from llmrl.selections.selection import Selection


def one_right_one_wrong(rewards: Tensor, group_ids: Tensor, *, threshold: float = 0.5) -> Selection:
    """Keeps each group's first right and first wrong rollout; drops groups all right or all wrong (arXiv:2509.22638).

    rewards: [B], right where >= threshold. group_ids: [B] int, in any order.
    """
    right = rewards >= threshold
    first: dict[tuple[int, bool], int] = {}
    for row, key in enumerate(zip(group_ids.tolist(), right.tolist(), strict=True)):
        first.setdefault(key, row)
    keep = torch.zeros_like(right)
    keep[[row for (group, outcome), row in first.items() if (group, not outcome) in first]] = True
    return Selection(keep)
