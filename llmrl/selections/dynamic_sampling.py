"""Groups that teach something, and as many of them as were asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from llmrl.config import Positive
from llmrl.ops.groups import group_spread
from llmrl.selections.selection import Selection


def dynamic_sampling(reward_parts: Tensor, group_ids: Tensor, *, max_batches: Positive = 10) -> Selection:
    """Drops groups whose rollouts are all equally right and asks for more prompts (DAPO, arXiv:2503.14476, section 3.2).

    reward_parts [B,K], group_ids [B]. How right a rollout is, is the first scorer that applies to it, before weights and
    length penalties: two right answers of different length are equally right. max_batches: batches of prompts that may
    be sampled for one step; then it trains with fewer groups.
    """
    applies = ~reward_parts.isnan()
    first = applies & (applies.cumsum(1) == 1)
    right = torch.where(first, reward_parts, 0.0).sum(1)
    return Selection(group_spread(right, group_ids), want_more=max_batches)
