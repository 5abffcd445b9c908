"""Statistics of rollouts that share a prompt, found by id and never by position. A NaN is a value that is not there."""

from __future__ import annotations

import torch
from torch import Tensor


def index(group_ids: Tensor) -> tuple[Tensor, Tensor]:
    """(place [B], sizes [number of groups]): each row's group numbered from 0."""
    _, place, sizes = torch.unique(group_ids, return_inverse=True, return_counts=True)
    return place, sizes


def members(group_ids: Tensor) -> list[Tensor]:
    """The rows of each group, in their order."""
    place, sizes = index(group_ids)
    return list(place.argsort(stable=True).split(sizes.tolist()))


def subgroups(group_ids: Tensor, classes: Tensor) -> Tensor:
    """[B] ids that two rows share when they share the group and the class. Each NaN is a class of its own."""
    joint = torch.stack([index(group_ids)[0], index(classes)[0]], dim=1)
    return torch.unique(joint, dim=0, return_inverse=True)[1]


def group_sum(x: Tensor, group_ids: Tensor) -> Tensor:
    """[B]: the sum of x over each row's group."""
    place, sizes = index(group_ids)
    total = torch.zeros(len(sizes), dtype=x.dtype, device=x.device)
    return total.index_add_(0, place, torch.where(x.isnan(), torch.zeros_like(x), x))[place]


def group_count(x: Tensor, group_ids: Tensor) -> Tensor:
    """[B] int: how many values of x there are in each row's group."""
    return group_sum((~x.isnan()).long(), group_ids)


def group_mean(x: Tensor, group_ids: Tensor) -> Tensor:
    """[B]: the mean of x over each row's group; 0 for a group without values."""
    return group_sum(x, group_ids) / group_count(x, group_ids).clamp(min=1)


def group_std(x: Tensor, group_ids: Tensor, *, population: bool = False) -> Tensor:
    """[B]: the standard deviation of x over each row's group, with n-1 or, of a population, n; 0 for a group of one."""
    squares = group_sum((x - group_mean(x, group_ids)) ** 2, group_ids)
    return (squares / (group_count(x, group_ids) - int(not population)).clamp(min=1)).sqrt()


def group_max(x: Tensor, group_ids: Tensor) -> Tensor:
    """[B]: the largest x in each row's group; -inf for a group without values."""
    place, sizes = index(group_ids)
    lowest = torch.full((len(sizes),), -torch.inf, dtype=x.dtype, device=x.device)
    return lowest.scatter_reduce_(0, place, torch.where(x.isnan(), -torch.inf, x), "amax")[place]


def group_spread(x: Tensor, group_ids: Tensor) -> Tensor:
    """[B] bool: whether the values in each row's group differ at all (max != min, no tolerance)."""
    return group_max(x, group_ids) > -group_max(-x, group_ids)


def differing(credit: Tensor, x: Tensor, group_ids: Tensor) -> Tensor:
    """[B]: the credit where x has a value and its group has spread, exactly 0 elsewhere."""
    return torch.where(group_spread(x, group_ids) & ~x.isnan(), credit, torch.zeros_like(credit))


def standard_scores(x: Tensor, group_ids: Tensor, eps: float) -> Tensor:
    """[B]: (x - mean) / (std + eps) within each row's group; exactly 0 without spread and where x has no value."""
    centred = x - group_mean(x, group_ids)
    return differing(centred / (group_std(x, group_ids) + eps), x, group_ids)


def decoupled_scores(parts: Tensor, weights: Tensor, group_ids: Tensor, eps: float) -> Tensor:
    """[B]: Σ_k weight_k · standard score of column k in its group; [B,K], [K]."""
    scores = [standard_scores(column, group_ids, eps) for column in parts.unbind(1)]
    return (torch.stack(scores, 1) * weights).sum(1)
