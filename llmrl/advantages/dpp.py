"""Credit for right answers that are unlike the others."""

from __future__ import annotations

import torch
from torch import Tensor

from llmrl.advantages.group import standardised
from llmrl.config import NotNegative
from llmrl.ops.groups import members


def dpp(
    rewards: Tensor,
    embeddings: Tensor,
    group_ids: Tensor,
    *,
    reward_coef: float = 0.5,
    diversity_coef: float = 0.5,
    gate: bool = True,
    eps: NotNegative = 1e-6,
) -> Tensor:
    """GRPO on reward_coef · r + diversity_coef · what the answer adds to the group's diversity (arXiv:2511.20647).

    rewards, group_ids [B], embeddings [B,D] of unit length -> [B]. Diversity is log det(Gram + I); the gain is that of
    the group over the group without the answer. gate: only answers with a reward above 0 earn it. The paper measures
    gains against a curated reference set, for videos; here the other rollouts are the set.
    """
    gains = marginal_gains(embeddings, group_ids).to(rewards.dtype)
    if gate:
        gains = torch.where(rewards > 0, gains, torch.zeros_like(gains))
    return standardised(reward_coef * rewards + diversity_coef * gains, group_ids, eps=eps)


def marginal_gains(embeddings: Tensor, group_ids: Tensor) -> Tensor:
    """[B]: log det(G + I) of each row's group less that of the group without the row, between 0 and log 2.

    By the Schur complement it is -log of the row's place on the diagonal of (G + I)^-1: one inverse a group.
    """
    gains = torch.zeros(len(embeddings), dtype=torch.double, device=embeddings.device)
    for rows in members(group_ids):
        given = embeddings[rows].double()
        gram = given @ given.T + torch.eye(len(rows), dtype=torch.double, device=given.device)
        gains[rows] = -torch.linalg.inv(gram).diagonal().log()
    return gains.round(decimals=10)  # copies must tie: what rounding leaves between them would be standardised


dpp.needs_siblings = True
