"""Which process trains on which prompts of a step, so that none waits long for another.

Each process has sampled as many prompts as the others, but answers differ in length and some rows have no gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from llmrl.algorithm import Algorithm
from llmrl.batch import Batch, joined
from llmrl.training.losses import active
from llmrl.training.ranks import Ranks

WORTH = 0.05  # share of the busiest process's tokens that moving rows has to save


def balanced(batch: Batch, algorithm: Algorithm, ranks: Ranks) -> Batch:
    """Rows of the same step, about as many tokens to train on as on every other process; a prompt's rows stay together.

    A batch stays as it is where little would be saved, where pairs join prompts, or where another policy's states were
    kept for it.
    """
    if ranks.size == 1:
        return batch
    ids = batch.arrays["group_ids"]
    fixed = bool(batch.stored) or (
        batch.pairs is not None and bool((ids[batch.pairs[:, 0]] != ids[batch.pairs[:, 1]]).any())
    )
    known = ranks.gather((fixed, tokens_of_groups(batch, algorithm)))
    costs = [costs for _, costs in known]
    if any(fixed for fixed, _ in known) or len(set().union(*costs)) < sum(map(len, costs)):
        return batch
    owners = assigned(costs)
    before, after = busiest(costs), busiest([{g: costs[old][g] for old, g in mine} for mine in owners])
    if before - after < WORTH * before:
        return batch
    leaving = {}
    for new, mine in enumerate(owners):
        groups = torch.tensor([g for old, g in mine if old == ranks.rank and new != old], dtype=ids.dtype)
        if len(groups):
            leaving[new] = batch.take(torch.isin(ids, groups).nonzero().squeeze(1).tolist())
    gone = torch.cat([part.arrays["group_ids"] for part in leaving.values()]) if leaving else ids[:0]
    staying = batch.take((~torch.isin(ids, gone)).nonzero().squeeze(1).tolist())
    return joined([staying, *(sent[ranks.rank] for sent in ranks.gather(leaving) if ranks.rank in sent)])


def tokens_of_groups(batch: Batch, algorithm: Algorithm) -> dict[int, int]:
    """How many tokens each prompt's rows put through the model: the prompt once, and every answer with a gradient."""
    out = dict.fromkeys(batch.arrays["group_ids"].tolist(), 0)
    seen = set()
    for i in active(batch, range(len(batch)), algorithm):
        group, sample = int(batch.arrays["group_ids"][i]), batch.samples[i]
        context = 0 if (group, tuple(sample.training)) in seen else len(sample.training)
        seen.add((group, tuple(sample.training)))
        out[group] += context + len(sample.response)
    return out


def assigned(costs: Sequence[Mapping[int, int]]) -> list[list[tuple[int, int]]]:
    """(process that has it, group) of the groups of each process: the dearest first, each to who has least by then.

    costs: tokens of the groups that each process has. Groups without any stay where they are.
    """
    out: list[list[tuple[int, int]]] = [
        [(old, g) for g, cost in mine.items() if not cost] for old, mine in enumerate(costs)
    ]
    loads = [0] * len(costs)
    dear = sorted((-cost, g, old) for old, mine in enumerate(costs) for g, cost in mine.items() if cost)
    for cost, group, old in dear:
        least = min(loads)
        new = old if loads[old] == least else loads.index(least)
        out[new].append((old, group))
        loads[new] -= cost
    return out


def busiest(costs: Sequence[Mapping[int, int]]) -> int:
    """Tokens of the process that has most."""
    return max(sum(mine.values()) for mine in costs)
