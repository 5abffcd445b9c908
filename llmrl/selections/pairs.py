"""Pairs (better, worse) out of the rollouts of one prompt, for objectives on pairs."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

import torch
from torch import Tensor

from llmrl.ops.groups import members
from llmrl.selections.selection import Selection


def best_worst_pairs(rewards: Tensor, group_ids: Tensor) -> Selection:
    """One pair a prompt: its best and its worst rollout; a prompt whose rewards are all equal has none.

    [B] each. Of equal rewards the first row counts. REBEL's pairs for large offline batches (arXiv:2404.16767).
    """
    found = []
    for rows in members(group_ids):
        given = rewards[rows]
        if given.max() != given.min():
            found.append((int(rows[given.argmax()]), int(rows[given.argmin()])))
    return _selection(found, rewards)


def all_pairs(rewards: Tensor, group_ids: Tensor, *, ties: bool = False) -> Selection:
    """Every two rollouts of a prompt with different rewards, the better one first.

    [B] each. ties: also those of equal reward, in row order: P3O then moves by its penalty alone, REBEL pulls the two
    log-ratios together.
    """
    found = (pair for rows in members(group_ids) for pair in combinations(rows.tolist(), 2))
    return _selection(_ordered(found, rewards, ties), rewards)


def disjoint_pairs(rewards: Tensor, group_ids: Tensor, *, ties: bool = True) -> Selection:
    """Each rollout in at most one pair: those of a prompt two by two in row order, the better one first.

    [B] each; the last of an odd group is left out. P3O's default (arXiv:2310.00212), which samples two answers a prompt.
    ties: whether two of equal reward are a pair as well.
    """
    found = (pair for rows in members(group_ids) for pair in zip(rows[::2].tolist(), rows[1::2].tolist(), strict=False))
    return _selection(_ordered(found, rewards, ties), rewards)


def _ordered(pairs: Iterable[tuple[int, int]], rewards: Tensor, ties: bool) -> list[tuple[int, int]]:
    given = rewards.tolist()
    return [(a, b) if given[a] >= given[b] else (b, a) for a, b in pairs if ties or given[a] != given[b]]


def _selection(pairs: list[tuple[int, int]], rewards: Tensor) -> Selection:
    index = torch.tensor(pairs, dtype=torch.long, device=rewards.device).reshape(-1, 2)
    keep = torch.zeros(len(rewards), dtype=torch.bool, device=rewards.device)
    keep[index.flatten()] = True
    return Selection(keep, pairs=index)
