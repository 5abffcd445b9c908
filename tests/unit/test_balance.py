"""Rows change the process they are trained on only as whole prompts, only where it saves work, and none is lost."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmrl.batch import Batch
from llmrl.composition import build
from llmrl.training.balance import assigned, balanced, busiest, tokens_of_groups
from llmrl.types import Sample


@pytest.fixture(scope="module")
def grpo():
    return build({"name": "grpo"})


class Process:
    """What `balanced` needs of the other processes, which are threads here."""

    def __init__(self, rank: int, size: int, board: list, barrier: Barrier):
        self.rank, self.size, self.board, self.barrier = rank, size, board, barrier

    def gather(self, value):
        self.board[self.rank] = value
        self.barrier.wait(10)
        out = list(self.board)
        self.barrier.wait(10)
        return out


def rows(answers: dict[int, list[int]], context: int = 3, advantage: float = 1.0) -> Batch:
    """Answers of these lengths, by prompt."""
    samples, ids = [], []
    for group, lengths in answers.items():
        for length in lengths:
            prompt = (group,) * context
            samples.append(Sample(prompt, prompt, tuple(range(length)), (True,) * length))
            ids.append(group)
    width = max((len(s.response) for s in samples), default=0)
    mask = torch.tensor([[t < len(s.response) for t in range(width)] for s in samples], dtype=torch.bool)
    mask = mask.reshape(len(samples), width)
    return Batch(
        samples, {"loss_mask": mask, "advantages": advantage * mask, "group_ids": torch.tensor(ids, dtype=torch.long)}
    )


def on_all(*batches: Batch, algorithm) -> list[Batch]:
    board, barrier = [None] * len(batches), Barrier(len(batches))
    with ThreadPoolExecutor(len(batches)) as threads:
        started = [threads.submit(balanced, batch, algorithm, Process(i, len(batches), board, barrier))
                   for i, batch in enumerate(batches)]  # fmt: skip
        return [one.result(20) for one in started]


def groups(batch: Batch) -> list[int]:
    return sorted(set(batch.arrays["group_ids"].tolist()))


def test_long_answers_are_shared_out(grpo):
    long, short = rows({0: [90, 90], 1: [90, 90]}), rows({2: [5, 5], 3: [5, 5]})
    one, two = on_all(long, short, algorithm=grpo)
    assert [tokens_of_groups(b, grpo) for b in (one, two)] == [{0: 183, 3: 13}, {1: 183, 2: 13}]
    assert one.arrays["loss_mask"].shape == two.arrays["loss_mask"].shape == (4, 90)
    assert [len(s.response) for s in two.samples] == two.counted.tolist() == [5, 5, 90, 90]


def test_what_has_no_gradient_weighs_nothing_and_stays(grpo):
    idle, busy = rows({0: [90] * 4, 1: [90] * 4}, advantage=0.0), rows({2: [50, 50], 3: [50, 50]})
    one, two = on_all(idle, busy, algorithm=grpo)
    assert (groups(one), groups(two)) == ([0, 1, 3], [2])


def test_a_small_difference_moves_nothing(grpo):
    batches = rows({0: [50], 1: [52]}), rows({2: [50], 3: [50]})
    assert all(new is old for new, old in zip(on_all(*batches, algorithm=grpo), batches, strict=True))


def test_a_process_without_rows_gets_some(grpo):
    one, two = on_all(rows({0: [9], 1: [9]}), rows({}), algorithm=grpo)
    assert groups(one) + groups(two) == [0, 1]
    assert two.arrays["advantages"].sum() == 9


@pytest.mark.parametrize("reason", ["pairs over prompts", "stored states"])
def test_batches_that_cannot_be_cut_stay(grpo, reason):
    one, two = rows({0: [90], 1: [90]}), rows({2: [5], 3: [5]})
    if reason == "stored states":
        two.stored = {"old": object()}
    else:
        one.pairs = torch.tensor([[0, 1]])
    assert [groups(b) for b in on_all(one, two, algorithm=grpo)] == [[0, 1], [2, 3]]


def test_pairs_within_a_prompt_go_along(grpo):
    one, two = rows({0: [90, 80], 1: [70, 60]}), rows({2: [5, 5], 3: [5, 5]})
    one.pairs, two.pairs = torch.tensor([[0, 1], [2, 3]]), torch.tensor([[1, 0], [2, 3]])
    lengths = [[[len(b.samples[i].response) for i in pair] for pair in b.pairs.tolist()]
               for b in on_all(one, two, algorithm=grpo)]  # fmt: skip
    assert sorted(lengths[0] + lengths[1]) == [[5, 5], [5, 5], [70, 60], [90, 80]]


@given(st.lists(st.lists(st.integers(0, 50), max_size=6), min_size=1, max_size=4))
def test_every_prompt_has_one_process_and_no_process_more_than_it_must(lengths):
    numbers = iter(range(100))
    costs = [{next(numbers): cost for cost in mine} for mine in lengths]
    owners = assigned(costs)
    assert sorted(pair for mine in owners for pair in mine) == sorted(
        (old, g) for old, mine in enumerate(costs) for g in mine
    )
    loads = [{g: costs[old][g] for old, g in mine} for mine in owners]
    total, largest = sum(map(sum, lengths)), max(map(max, filter(None, lengths)), default=0)
    assert busiest(loads) <= total / len(costs) + largest
