"""Random arrays for every word of the vocabulary, made from its shape, and the loss of a part as the trainer reduces it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from llmrl.batch import DERIVED, VOCABULARY, WITH_GRADIENT, Batch, call
from llmrl.catalog import inputs_of
from llmrl.ops.reduce import reduce_tokens, reduce_units, row_coefficients
from llmrl.types import Sample

COMPONENTS, DIMENSIONS, MAX_LENGTH = 3, 4, 9
LEAVES = sorted(WITH_GRADIENT - set(DERIVED))
LENGTHS = (6, 3, 5, 6, 1, 4, 6, 2)  # of the responses; row 5 has none that counts
GROUPS = (7, 3, 7, 3, 3, 7, 40, 40)  # by id, never by position
PAIRS = ((0, 1), (3, 2), (4, 5), (6, 7))

FITTED = {  # groups have two or three rows here
    "polychromic": {"set_size": 2},
    "poly_ppo": {"set_size": 1},
    "passk_analytic": {"k": 1},
    "passk": {"k": 1},
}


def batch(seed: int = 0, vocabulary: int = 128) -> Batch:
    """Eight rows of three prompts with every array of the vocabulary: uneven lengths, holes, one row without a token."""
    generator = torch.Generator().manual_seed(seed)
    rows, width = len(LENGTHS), max(LENGTHS)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, vocabulary, (count,), generator=generator).tolist())

    mask = torch.arange(width) < torch.tensor(LENGTHS)[:, None]
    mask[0, 2:4], mask[3, 0], mask[5] = False, False, False
    contexts = {group: ids(length) for group, length in ((7, 1), (3, 5), (40, 9))}
    logprobs = -normal(rows, width).abs() - 0.1
    special = {
        "loss_mask": mask,
        "lengths": mask.sum(1),
        "group_ids": torch.tensor(GROUPS),
        "truncated": torch.arange(rows) % 3 == 0,
        "temperatures": torch.ones(rows, width),
        "logprobs": logprobs,
        "step_labels": torch.rand(rows, width, generator=generator),
        "entropy": normal(rows, width).abs(),
        "old_entropy": normal(rows, width).abs(),
        "embeddings": torch.nn.functional.normalize(normal(rows, DIMENSIONS), dim=1),
        "progress": torch.tensor(0.25),
        "step_number": torch.tensor(3),
        "block_ids": (torch.arange(width) > 1).long().expand(rows, width),
        "step_ids": (torch.rand(rows, width, generator=generator) < 0.4).cumsum(1),
    }
    by_shape = {"B": (rows,), "BT": (rows, width), "BK": (rows, COMPONENTS), "K": (COMPONENTS,)}
    arrays = {}
    for name, word in VOCABULARY.items():
        if name in special:
            arrays[name] = special[name]
        elif name.endswith("logprobs") and name not in DERIVED:
            arrays[name] = (logprobs + 0.3 * normal(rows, width)).clamp(max=0)
        elif name not in DERIVED:
            shape, _, kind = word.shape.partition(" ")
            drawn = normal(*by_shape[shape])
            arrays[name] = {"": drawn, "int": (drawn.abs() * 2).long(), "bool": drawn > 0}[kind]
    arrays["reward_parts"][1, 0] = float("nan")  # a scorer that does not apply
    constants = {name: arrays.pop(name) for name, word in VOCABULARY.items() if word.shape in ("K", "")}
    samples = []
    for row, length in enumerate(LENGTHS):
        context = contexts[GROUPS[row]]
        samples.append(Sample(context, context, ids(length), tuple(mask[row, :length].tolist())))
    return Batch(samples, arrays, torch.tensor(PAIRS), constants)


def spoiled(given: Batch) -> Batch:
    """The same batch with NaN and infinities wherever the mask does not count."""
    arrays = dict(given.arrays)
    outside = ~arrays["loss_mask"]
    rubbish = torch.tensor([float("nan"), float("inf"), -float("inf")])
    for name, array in arrays.items():
        if array.dim() == 2 and array.shape == outside.shape and array.is_floating_point():
            fill = rubbish[torch.arange(outside.sum()) % 3].to(array.dtype)
            arrays[name] = array.masked_scatter(outside, fill)
    return replace(given, arrays=arrays)


def widened(given: Batch, columns: int = 5) -> Batch:
    """The same batch with uncounted columns behind, holding rubbish."""
    width = given.arrays["loss_mask"].shape[1]
    arrays = {
        k: torch.nn.functional.pad(v, (0, columns)) if v.dim() == 2 and v.shape[1] == width else v
        for k, v in given.arrays.items()
    }
    return spoiled(replace(given, arrays=arrays))


def emptied(given: Batch) -> Batch:
    """The same batch with nothing that counts."""
    mask = torch.zeros_like(given.arrays["loss_mask"])
    samples = [replace(s, loss_mask=(False,) * len(s.response)) for s in given.samples]
    return spoiled(replace(given, samples=samples, arrays=given.arrays | {"loss_mask": mask, "lengths": mask.sum(1)}))


def differentiate(
    part: Any, given: Batch, mode: str = "token_mean", split: Sequence[Sequence[int]] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """(loss, gradient by array) of a part over the batch with the counts of the whole batch, as the trainer reduces it.

    split: rows of each micro-batch. Gradients are 0 where nothing counts: no forward pass stands behind those places.
    """
    leaves = {name: given.arrays[name].clone().requires_grad_() for name in LEAVES}
    whole = replace(given, arrays=given.arrays | leaves)
    mask, lengths = given.arrays["loss_mask"], given.arrays["lengths"]
    coefficients = row_coefficients(mode, lengths, given.arrays["group_ids"], MAX_LENGTH)
    active = lengths > 0
    groups = len(given.arrays["group_ids"][active].unique())
    counts = {"sequence": int(active.sum()), "pair": int(active[given.pairs].all(1).sum()), "group": groups}
    state = part.init() if hasattr(part, "init") else None
    losses = []
    for chosen in whole_units(part, given, split) if split else [range(len(given))]:
        rows = [i for i in chosen if active[i]]
        loss = call(part, whole.take(rows), state)
        if loss.unit == "token":
            losses.append(reduce_tokens(loss.values, mask[rows], coefficients[rows]))
        else:
            losses.append(reduce_units(loss.values, counts[loss.unit]))
    total = torch.stack(losses).sum()
    gradients = dict.fromkeys(LEAVES)
    if total.requires_grad:
        gradients = dict(zip(LEAVES, torch.autograd.grad(total, list(leaves.values()), allow_unused=True), strict=True))
    zero = torch.zeros(mask.shape)
    return total.detach(), {n: zero if g is None else torch.where(mask, g, 0.0) for n, g in gradients.items()}


def whole_units(part: Any, given: Batch, split: Sequence[Sequence[int]]) -> list[list[int]]:
    """The split, with the rows of a prompt in one piece where the part compares them."""
    if "group_ids" not in inputs_of(part):
        return [list(chosen) for chosen in split]
    groups = given.arrays["group_ids"].tolist()
    first = [min(i for i, chosen in enumerate(split) if any(groups[r] == g for r in chosen)) for g in groups]
    return [[r for r in range(len(given)) if first[r] == i] for i in range(len(split))]


def assert_same(
    one: tuple[Tensor, dict[str, Tensor]], other: tuple[Tensor, dict[str, Tensor]], **tolerance: float
) -> None:
    """Two results of `differentiate` agree."""
    torch.testing.assert_close(one[0], other[0], **tolerance)
    for name in LEAVES:
        torch.testing.assert_close(one[1][name], other[1][name], **tolerance)
