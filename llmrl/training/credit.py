"""From scores to credit, on the batch of all ranks: statistics never see a part of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llmrl.algorithm import Algorithm
from llmrl.batch import VOCABULARY, Batch, Credit, call, sources
from llmrl.catalog import inputs_of, name_of
from llmrl.errors import RecipeError, TrainingError
from llmrl.ops.groups import group_mean
from llmrl.ops.masked import last_counted
from llmrl.plan import required, when
from llmrl.selections.selection import Selection
from llmrl.training.ranks import Ranks

PASSES = frozenset(n for n, a in VOCABULARY.items() if a.source in ("old", "ref"))


def needs_passes(part: Any) -> bool:
    """Whether a part reads what only a forward pass of the trainer makes."""
    return bool(sources(inputs_of(part)) & PASSES)


def early_and_late(combine: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """(the combiners that run before the trainer's passes, those from the first on that needs one), in their order."""
    first = next((i for i, part in enumerate(combine) if needs_passes(part)), len(combine))
    return list(combine[:first]), list(combine[first:])


def reward(batch: Batch, combine: Sequence[Any], ranks: Ranks, states: dict[str, Any] | None = None) -> None:
    """Run the combiners given; writes `rewards` [B] or `token_rewards` [B,T], by the shape of what a part returns.

    states: memories by 'combine.name', replaced by what each part leaves.
    """
    for part in combine:
        out = on_all_ranks(part, batch, ranks, states, "combine")
        if out.dim() == 2 and "token_rewards" in batch.arrays and "token_rewards" not in inputs_of(part):
            raise RecipeError(
                f"algorithm.combine: {name_of(part)} would overwrite the token_rewards of the part before it. Leave one of "
                "the two out; a penalty on the distance to the reference can also be a regularizer, such as kl_k3."
            )
        batch.arrays["rewards" if out.dim() == 1 else "token_rewards"] = out


def without_probes(batch: Batch, ranks: Ranks) -> list[int]:
    """Write each row's `greedy_rewards` from its group's greedy answer; the rows that are no such answer."""
    arrays, own = ranks.gather_arrays({k: batch.arrays[k] for k in ("rewards", "probe", "group_ids")})
    share = group_mean(arrays["probe"].float(), arrays["group_ids"])
    total = group_mean(torch.where(arrays["probe"], arrays["rewards"], 0.0), arrays["group_ids"])
    judged = (share > 0)[own] & ~batch.arrays["probe"]  # one whose greedy answer was dropped has no baseline
    batch.arrays["greedy_rewards"] = (total / share.clamp(min=1e-9))[own]
    return judged.nonzero().squeeze(1).tolist()


def selected(
    batch: Batch, select: Sequence[Any], ranks: Ranks, states: dict[str, Any] | None = None, at: str = "scored"
) -> tuple[list[int], int]:
    """(this rank's rows that every selection of that time keeps, in order; batches of prompts it may take to fill up).

    Weights, masks and pairs that a selection gives are written into the batch.
    """
    keep, more = torch.ones(len(batch), dtype=torch.bool), 0
    for part in select:
        if when(part) != at:
            continue
        said: Selection = on_all_ranks(part, batch, ranks, states, "select")
        more = max(more, said.want_more)
        keep &= said.keep if said.keep is not None else True
        batch.write({k: v for k in ("weights", "loss_mask") if (v := getattr(said, k)) is not None})
        if said.pairs is not None:
            batch.pairs = said.pairs
    return keep.nonzero().squeeze(1).tolist(), more


def assign_credit(batch: Batch, algorithm: Algorithm, ranks: Ranks, states: dict[str, Any] | None = None) -> None:
    """Write `advantages` [B,T] (and `returns` where the estimator gives them), then what each shaping part returns."""
    if "token_rewards" in batch.arrays and "token_rewards" not in required(algorithm):
        raise RecipeError(
            "algorithm.combine: a part lays rewards on tokens, but no later part reads token_rewards, so it would have no "
            "effect. Use an advantage that reads them, such as gae, or leave the part out."
        )
    mask = batch.arrays["loss_mask"]
    if "token_rewards" not in batch.arrays and "rewards" in batch.arrays:
        batch.arrays["token_rewards"] = batch.arrays["rewards"][:, None] * last_counted(mask)
    if algorithm.advantage is not None:
        out = on_all_ranks(algorithm.advantage, batch, ranks, states, "advantage")
        if isinstance(out, Credit):
            batch.arrays["returns"] = out.returns
            out = out.advantages
        batch.write({"advantages": laid_out(out, mask, name_of(algorithm.advantage))})
    for part in algorithm.shaping:
        out = on_all_ranks(part, batch, ranks, states, "shaping")
        batch.write(out if isinstance(out, dict) else {"advantages": out})


def laid_out(numbers: Tensor, mask: Tensor, name: str) -> Tensor:
    """[B,T] of [B] or [B,T]. TrainingError for anything else that the part of that name gives."""
    if not isinstance(numbers, Tensor) or numbers.shape not in (mask.shape[:1], mask.shape):
        found = list(numbers.shape) if isinstance(numbers, Tensor) else type(numbers).__name__
        raise TrainingError(
            f"algorithm.advantage: {name} gave {found}; expected a tensor with a number a rollout, {list(mask.shape[:1])}, or a "
            f"number a token, {list(mask.shape)}."
        )
    return numbers[:, None].expand(mask.shape) if numbers.dim() == 1 else numbers


def on_all_ranks(part: Any, batch: Batch, ranks: Ranks, states: dict[str, Any] | None = None, stage: str = "") -> Any:
    """Call a part on the rows of all ranks and return this rank's share of what it gives; its memory goes on in states.

    Raises TrainingError with what a part says of arrays that it cannot work with.
    """
    key = f"{stage}.{name_of(part)}"
    arrays, own = (batch.arrays, slice(None)) if ranks.size == 1 else ranks.gather_arrays(batch.arrays)
    try:
        out = call(part, Batch([], arrays, None, batch.constants), (states or {}).get(key))
    except ValueError as error:
        raise TrainingError(f"algorithm.{stage}: {name_of(part)}: {error}") from error
    if hasattr(part, "init"):
        out, states[key] = out
    if ranks.size == 1:
        return out
    width = batch.arrays["loss_mask"].shape[1]

    def mine(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return x[own] if x.dim() == 1 else x[own, :width]

    if isinstance(out, Tensor):
        return mine(out)
    if isinstance(out, dict):
        return {name: mine(x) if x.dim() else x for name, x in out.items()}
    if isinstance(out, Selection):
        return out._replace(
            **{k: mine(getattr(out, k)) for k in ("keep", "weights", "loss_mask")}, pairs=_own(out.pairs, own)
        )
    return type(out)(*map(mine, out))


def _own(pairs: Tensor | None, rows: slice) -> Tensor | None:
    """The pairs that stand whole among a rank's rows, numbered from its first; a prompt's rows are all on one rank."""
    if pairs is None:
        return None
    inside = ((pairs >= rows.start) & (pairs < rows.stop)).all(1)
    return pairs[inside] - rows.start


def diagnosed(batch: Batch, diagnostics: Sequence[Any], ranks: Ranks) -> dict[str, float]:
    """What the diagnostics say of the rows of all ranks, by metric name."""
    out: dict[str, float] = {}
    if diagnostics:
        arrays, _ = ranks.gather_arrays(batch.arrays)
        for part in diagnostics:
            out |= call(part, Batch([], arrays, None, batch.constants))
    return out
