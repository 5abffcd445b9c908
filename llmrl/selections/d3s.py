"""The rollouts that differ most in credit, and of these the tokens where it meets uncertainty."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from llmrl.config import Share
from llmrl.ops.groups import members
from llmrl.ops.masked import masked_sum
from llmrl.selections.selection import Selection


def d3s(
    advantages: Tensor,
    old_entropy: Tensor,
    loss_mask: Tensor,
    group_ids: Tensor,
    progress: Tensor,
    *,
    initial_share: Share = 0.25,
    final_share: Share = 1.0,
    initial_token_share: Share = 0.2,
    final_token_share: Share = 1.0,
    level: Literal["batch", "group"] = "batch",
) -> Selection:
    """Keeps the rows with the largest variance of the advantage, and of their tokens those largest in |A| · H.

    D³S, arXiv:2509.22115. advantages, old_entropy, loss_mask [B,T], group_ids [B]. Both shares go linearly from their
    initial to their final value with the progress of the stage; the paper's own four numbers are not known, these are
    ours. Rows are chosen out of the whole batch, or the same share of each group; advantages are not standardised again.
    Other tokens leave the loss and its divisor.
    """
    p = float(progress)
    credit = masked_sum(advantages, loss_mask, 1) / loss_mask.sum(1).clamp(min=1)
    row_share = (1 - p) * initial_share + p * final_share
    keep = torch.zeros_like(credit, dtype=torch.bool)
    for rows in members(group_ids) if level == "group" else [torch.arange(len(credit), device=credit.device)]:
        keep[rows[most_varied(credit[rows], _share_of(len(rows), row_share))]] = True
    kept = loss_mask & keep[:, None]
    chosen = kept.nonzero()
    strength = advantages[kept].abs() * old_entropy[kept]
    token_share = (1 - p) * initial_token_share + p * final_token_share
    chosen = chosen[strength.argsort(descending=True, stable=True)[: _share_of(len(chosen), token_share)]]
    tokens = torch.zeros_like(loss_mask)
    tokens[chosen[:, 0], chosen[:, 1]] = True
    return Selection(keep, loss_mask=tokens)


def most_varied(values: Tensor, size: int) -> Tensor:
    """Indices, ascending, of the `size` values with the largest variance; [N] -> [size].

    They are the k smallest and the size - k largest for some k: all are tried; among equals the smallest k.
    """
    order = values.argsort(stable=True)
    given = values[order].double()
    if size >= len(given):
        return torch.arange(len(values), device=values.device)
    given = given - given.mean()  # the variance is a difference of sums: keep them small
    zero = torch.zeros(1, dtype=torch.double, device=values.device)
    low, low_squares = (torch.cat([zero, x.cumsum(0)[:size]]) for x in (given, given**2))
    high, high_squares = (torch.cat([zero, x.flip(0).cumsum(0)[:size]]).flip(0) for x in (given, given**2))
    variance = (low_squares + high_squares) / size - ((low + high) / size) ** 2
    k = int((variance >= variance.max() * (1 - 1e-12)).nonzero()[0])
    return torch.cat([order[:k], order[len(order) - (size - k) :]]).sort().values


def _share_of(count: int, share: float) -> int:
    """⌊share · count⌋, at least 1 of what there is; 1e-9 so that 0.29 · 100 is 29."""
    return min(count, max(1, math.floor(share * count + 1e-9)))
