"""Forward passes over a whole batch: the one without gradient, and the rows of the one with."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

from llmrl.batch import Batch
from llmrl.policy.forward import Rows
from llmrl.policy.model import Policy
from llmrl.training.micro_batches import split


def rows_of(batch: Batch, indices: Sequence[int], under: str = "training") -> Rows:
    """The model's view of some rows. under: 'training', or 'sampled' for the context that was sampled from."""
    samples = [batch.samples[i] for i in indices]
    mask = batch.arrays["loss_mask"]
    temperatures = batch.arrays["temperatures"][:, 0].tolist()
    return Rows(
        contexts=[getattr(s, under) for s in samples],
        responses=[s.response for s in samples],
        masks=[mask[i, : len(batch.samples[i].response)].tolist() for i in indices],
        temperatures=[temperatures[i] for i in indices],
    )


@torch.no_grad()
def run_pass(
    policy: Policy,
    batch: Batch,
    budget: int,
    *,
    entropy: bool = False,
    values: bool = False,
    under: str = "training",
    reference: bool = False,
) -> dict[str, Tensor]:
    """{'logprobs', 'entropy'?, 'values'?} of every row, [B,T] on the CPU, without gradient.

    reference: with the adapters off. Rows go through in micro-batches of at most `budget` tokens.
    """
    width = batch.arrays["loss_mask"].shape[1]
    names = ["logprobs", *(["entropy"] if entropy else []), *(["values"] if values else [])]
    out = {name: torch.zeros(len(batch), width) for name in names}  # there also when there are no rows
    contexts = [getattr(s, under) for s in batch.samples]
    lengths = [len(s.response) for s in batch.samples]
    with policy.reference() if reference else contextlib.nullcontext():
        for rows in split([[i] for i in range(len(batch))], contexts, lengths, budget, policy.shared):
            got = policy.statistics(rows_of(batch, rows, under), width, entropy=entropy, values=values)
            for name, array in got.items():
                out[name][rows] = array.float().cpu()
    return out
