"""Credit relative to the group's tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from llmrl.advantages.group import standardised
from llmrl.config import NotNegative
from llmrl.ops.groups import group_mean, group_spread, index


def hapo_group(
    rewards: Tensor, lengths: Tensor, group_ids: Tensor, *, eps: NotNegative = 1e-6, largest: float = 5.0
) -> Tensor:
    """(r - mean) / (std + eps), both over the group's tokens: a reward counts once a token (arXiv:2509.16591).

    [B] each; std with n. A group in which some |A| reaches `largest`, as where all but a few tokens share a reward, gets
    GRPO's credit instead. A group without spread, or of one, gets exactly 0.
    """
    counts = lengths.to(rewards.dtype)
    tokens = group_mean(counts, group_ids).clamp(min=torch.finfo(rewards.dtype).tiny)
    centred = rewards - group_mean(counts * rewards, group_ids) / tokens
    scaled = centred / ((group_mean(counts * centred**2, group_ids) / tokens).sqrt() + eps)
    place, sizes = index(group_ids)
    beyond = torch.zeros_like(sizes).index_add_(0, place, ((scaled.abs() >= largest) & (lengths > 0)).long())
    credit = torch.where(beyond[place] > 0, standardised(rewards, group_ids, eps=eps), scaled)
    return torch.where((lengths > 0) & group_spread(rewards, group_ids), credit, 0.0)


hapo_group.needs_siblings = True
