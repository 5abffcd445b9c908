"""Statistics of rollouts that share a prompt, found by id and never by position."""

from __future__ import annotations

import torch
from torch import Tensor


def index(group_ids: Tensor) -> tuple[Tensor, Tensor]:
    """(place [B], sizes [number of groups]): each row's group numbered from 0."""
    _, place, sizes = torch.unique(group_ids, return_inverse=True, return_counts=True)
    return place, sizes


def group_mean(x: Tensor, group_ids: Tensor) -> Tensor:
    """[B]: the mean of x over each row's group."""
    place, sizes = index(group_ids)
    total = torch.zeros(len(sizes), dtype=x.dtype, device=x.device).index_add_(0, place, x)
    return (total / sizes)[place]


def group_std(x: Tensor, group_ids: Tensor) -> Tensor:
    """[B]: the standard deviation of x over each row's group, with n-1; 0 for a group of one."""
    place, sizes = index(group_ids)
    squares = (x - group_mean(x, group_ids)) ** 2
    total = torch.zeros(len(sizes), dtype=x.dtype, device=x.device).index_add_(0, place, squares)
    return (total / (sizes - 1).clamp(min=1)).sqrt()[place]


def group_spread(x: Tensor, group_ids: Tensor) -> Tensor:
    """[B] bool: whether the values in each row's group differ at all (max != min, no tolerance)."""
    place, sizes = index(group_ids)
    low = torch.full((len(sizes),), torch.inf, dtype=x.dtype, device=x.device).scatter_reduce_(0, place, x, "amin")
    high = torch.full((len(sizes),), -torch.inf, dtype=x.dtype, device=x.device).scatter_reduce_(0, place, x, "amax")
    return (high != low)[place]
