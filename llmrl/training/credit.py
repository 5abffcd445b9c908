"""From scores to credit, on the batch of all ranks: statistics never see a part of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llmrl.algorithm import Algorithm, required
from llmrl.batch import VOCABULARY, Batch, Credit, call, sources
from llmrl.catalog import inputs_of, name_of
from llmrl.errors import RecipeError
from llmrl.ops.masked import last_counted
from llmrl.training.ranks import Ranks

PASSES = frozenset(n for n, a in VOCABULARY.items() if a.source in ("old", "ref"))


def needs_passes(part: Any) -> bool:
    """Whether a part reads what only a forward pass of the trainer makes."""
    return bool(sources(inputs_of(part)) & PASSES)


def reward(batch: Batch, combine: Sequence[Any], ranks: Ranks) -> None:
    """Run the combiners given; writes `rewards` [B] or `token_rewards` [B,T], by the shape of what a part returns."""
    for part in combine:
        out = on_all_ranks(part, batch, ranks)
        if out.dim() == 2 and "token_rewards" in batch.arrays and "token_rewards" not in inputs_of(part):
            raise RecipeError(
                f"algorithm.combine: {name_of(part)} would overwrite the token_rewards of the part before it. Leave one of "
                "the two out; a penalty on the distance to the reference can also be a regularizer, such as kl_k3."
            )
        batch.arrays["rewards" if out.dim() == 1 else "token_rewards"] = out


def selected(batch: Batch, select: Sequence[Any], ranks: Ranks) -> list[int]:
    """This rank's rows that every selection keeps, in order."""
    keep = torch.ones(len(batch), dtype=torch.bool)
    for part in select:
        keep &= on_all_ranks(part, batch, ranks).keep
    return keep.nonzero().squeeze(1).tolist()


def assign_credit(batch: Batch, algorithm: Algorithm, ranks: Ranks) -> None:
    """Write `advantages` [B,T] (and `returns` where the estimator gives them), then as each shaping part returns them."""
    if "token_rewards" in batch.arrays and "token_rewards" not in required(algorithm):
        raise RecipeError(
            "algorithm.combine: a part lays rewards on tokens, but no later part reads token_rewards, so it would have no "
            "effect. Use an advantage that reads them, such as gae, or leave the part out."
        )
    if algorithm.advantage is not None:
        mask = batch.arrays["loss_mask"]
        if "token_rewards" not in batch.arrays and "rewards" in batch.arrays:
            batch.arrays["token_rewards"] = batch.arrays["rewards"][:, None] * last_counted(mask)
        out = on_all_ranks(algorithm.advantage, batch, ranks)
        if isinstance(out, Credit):
            batch.arrays["returns"] = out.returns
            out = out.advantages
        out = out[:, None].expand(mask.shape) if out.dim() == 1 else out
        batch.arrays["advantages"] = torch.where(mask, out, torch.zeros_like(out))
    for part in algorithm.shaping:
        batch.arrays["advantages"] = on_all_ranks(part, batch, ranks)


def on_all_ranks(part: Any, batch: Batch, ranks: Ranks) -> Any:
    """Call a part on the rows of all ranks and return this rank's share of what it gives."""
    if ranks.size == 1:
        return call(part, batch)
    arrays, own = ranks.gather_arrays(batch.arrays)
    out = call(part, Batch([], arrays, None, batch.constants))
    width = batch.arrays["loss_mask"].shape[1]

    def mine(x: Tensor) -> Tensor:
        return x[own] if x.dim() == 1 else x[own, :width]

    return mine(out) if isinstance(out, Tensor) else type(out)(*(mine(x) if isinstance(x, Tensor) else x for x in out))
