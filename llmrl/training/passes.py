"""Forward passes over a whole batch: the one without gradient, and the rows of the one with."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

from llmrl.batch import Batch
from llmrl.policy.forward import ACTION_VALUES, Rows, StoredStates
from llmrl.policy.model import Policy
from llmrl.training.memory import out_of_memory
from llmrl.training.micro_batches import split


def rows_of(batch: Batch, indices: Sequence[int], under: str = "training", keyed: bool = False) -> Rows:
    """The model's view of some rows. under: 'training', or 'sampled' for the context that was sampled from. keyed: with
    what a row's noise hangs on, which is what it says and not where it stands.
    """
    samples = [batch.samples[i] for i in indices]
    mask = batch.arrays["loss_mask"]
    temperatures = batch.arrays["temperatures"]
    return Rows(
        contexts=[getattr(s, under) for s in samples],
        responses=[s.response for s in samples],
        masks=[mask[i, : len(batch.samples[i].response)].tolist() for i in indices],
        temperatures=[temperatures[i, : len(batch.samples[i].response)].tolist() for i in indices],
        keys=[hash((s.training, s.response)) for s in samples] if keyed else None,
    )


@torch.no_grad()
def run_pass(
    policy: Policy,
    batch: Batch,
    budget: int,
    *,
    entropy: bool = False,
    values: bool = False,
    action_values: bool = False,
    under: str = "training",
    reference: bool = False,
    keep_as: str | None = None,
) -> dict[str, Tensor]:
    """{'logprobs', 'entropy'?, 'values'?, and for action_values ACTION_VALUES} of every row, [B,T] on the CPU.

    Without gradient. reference: with the adapters off. keep_as: store the hidden states in the batch under that name, for
    divergences over the vocabulary. Rows go through in micro-batches of at most `budget` tokens, of fewer where memory does
    not suffice.
    """
    width = batch.arrays["loss_mask"].shape[1]
    names = ["logprobs", *(["entropy"] if entropy else []), *(["values"] if values else [])]
    names += ACTION_VALUES if action_values else ()
    out = {name: torch.zeros(len(batch), width) for name in names}  # there also when there are no rows
    contexts = [getattr(s, under) for s in batch.samples]
    lengths = [len(s.response) for s in batch.samples]
    states: list[Tensor] = [torch.zeros(0)] * len(batch)
    masks = rows_of(batch, range(len(batch)), under).masks
    with policy.reference() if reference else contextlib.nullcontext():
        waiting = split([[i] for i in range(len(batch))], contexts, lengths, budget, policy.shared)
        idle = policy.sharding.most(len(waiting)) - len(waiting)
        while waiting:
            rows = waiting.pop(0)
            seen = rows_of(batch, rows, under)
            asked = {"entropy": entropy, "values": values, "action_values": action_values}
            try:
                got = policy.statistics(seen, width, states=keep_as is not None, **asked)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or len(rows) == 1 or policy.sharding.spread:
                    raise
                waiting[:0] = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
                continue
            for i, mine in zip(rows, seen.by_row(got.pop("states").cpu()) if keep_as else [], strict=False):
                states[i] = mine
            for name, array in got.items():
                out[name][rows] = array.float().cpu()
        for _ in range(idle):
            policy.idle()
        if keep_as is not None:
            batch.stored[keep_as] = StoredStates(states, masks, policy.head())
    return out
