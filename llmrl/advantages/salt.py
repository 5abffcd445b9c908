"""Credit of each step of an episode from all episodes that took it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from llmrl.advantages.group import leave_one_out, standardised
from llmrl.ops.groups import index


def salt(
    rewards: Tensor,
    group_ids: Tensor,
    step_ids: Tensor,
    step_hashes: Tensor,
    loss_mask: Tensor,
    *,
    history: int | None = None,
    base: Literal["grpo", "rloo"] = "grpo",
) -> Tensor:
    """The mean advantage of the prompt's rollouts that share a step, on the step's tokens (SALT, arXiv:2510.20022).

    rewards, group_ids [B], the rest [B,T] -> [B,T]. Two steps are one when their hash and those of the `history` steps
    before them are equal (None: all before; 0: any equal step). A step that nobody shares, and tokens outside steps, keep
    the rollout's own; the sum over a prompt's steps stays what it was. Derived from the paper's abstract: it has no
    public code.
    """
    outcome = {"grpo": standardised, "rloo": leave_one_out}[base](rewards, group_ids)
    credit = torch.where(loss_mask, outcome[:, None], torch.zeros_like(outcome)[:, None])
    places: dict[tuple[int, ...], list[tuple[int, Tensor]]] = {}
    for row, group in enumerate(index(group_ids)[0].tolist()):
        taken: list[int] = []
        for step in step_ids[row][loss_mask[row] & (step_ids[row] >= 0)].unique().tolist():
            tokens = (loss_mask[row] & (step_ids[row] == step)).nonzero().flatten()
            first = len(taken) - history if history is not None else 0
            taken.append(int(step_hashes[row, tokens[0]]))
            places.setdefault((group, *taken[max(first, 0) :]), []).append((row, tokens))
    for shared in places.values():
        if len(shared) > 1:
            mean = outcome[[row for row, _ in shared]].mean()
            for row, tokens in shared:
                credit[row, tokens] = mean
    return credit


salt.needs_siblings = True
