"""Credit of rollouts as members of sets that should be good and diverse together."""

from __future__ import annotations

from itertools import combinations
from math import comb

import torch
from torch import Tensor

from llmrl.config import Positive
from llmrl.ops.groups import members


def polychromic(
    rewards: Tensor,
    signatures: Tensor,
    group_ids: Tensor,
    *,
    set_size: Positive = 4,
    max_sets: Positive = 500,
    uniform_counts: bool = True,
    seed: int = 0,
) -> Tensor:
    """Mean over the sets S that hold a rollout of f(S) - mean f, f = mean reward · distinct / size (arXiv:2509.25424).

    [B] each; rewards in [0, 1]; distinct: different signatures in the set. All sets of `set_size` rollouts of a group up
    to `max_sets`, else that many drawn with `seed`; a rollout in none gets 0. uniform_counts: a set that says one thing
    has diversity 1 / size, as the definition has it; False gives it 0. The paper branches at states of an episode; here
    the prompt is the state. A group smaller than a set gets 0; ValueError when every group is.
    """
    credit = torch.zeros_like(rewards)
    groups = members(group_ids)
    if groups and max(len(rows) for rows in groups) < set_size:
        raise ValueError(
            f"sets of {set_size}, but the largest group has {max(len(rows) for rows in groups)} rollouts. "
            "Raise rollout.group_size or lower set_size."
        )
    for rows in groups:
        if len(rows) >= set_size:
            sets = _sets(len(rows), set_size, max_sets, seed).to(rows.device)
            credit[rows] = _margins(rewards[rows], signatures[rows], sets, uniform_counts).to(rewards.dtype)
    return credit


def _sets(size: int, set_size: int, max_sets: int, seed: int) -> Tensor:
    """[M,n] places in a group."""
    if comb(size, set_size) <= max_sets:
        return torch.tensor(list(combinations(range(size), set_size)))
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(max_sets, size, generator=generator).argsort(1)[:, :set_size]


def _margins(rewards: Tensor, signatures: Tensor, sets: Tensor, uniform_counts: bool) -> Tensor:
    sorted_signatures = signatures[sets].sort(1).values
    distinct = 1 + (sorted_signatures.diff(dim=1) != 0).sum(1)
    diversity = distinct.double() / sets.shape[1]
    if not uniform_counts:
        diversity = torch.where(distinct == 1, 0.0, diversity)
    worth = rewards[sets].double().mean(1) * diversity
    if worth.max() == worth.min():
        return torch.zeros_like(rewards)
    margin = (worth - worth.mean())[:, None].expand(sets.shape).flatten()
    total, count = (torch.zeros(len(rewards), dtype=torch.double, device=rewards.device) for _ in range(2))
    total.index_add_(0, sets.flatten(), margin)
    count.index_add_(0, sets.flatten(), torch.ones_like(margin))
    return total / count.clamp(min=1)


polychromic.needs_siblings = True
