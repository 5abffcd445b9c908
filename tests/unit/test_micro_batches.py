import random

import pytest

from llmrl.training.micro_batches import split


def tokens(rows, contexts, responses, shared):
    """How many tokens are forwarded with the rows, padding counted, worked out from scratch."""
    if not shared:
        return len(rows) * max(len(contexts[i]) + responses[i] for i in rows)
    here = {tuple(contexts[i]) for i in rows}
    return sum(map(len, here)) + sum(responses[i] for i in rows)


def problem(seed):
    rng = random.Random(seed)
    prompts = [tuple(rng.choices(range(50), k=rng.randint(1, 12))) for _ in range(4)]
    contexts = [rng.choice(prompts) for _ in range(17)]
    return contexts, [rng.randint(0, 20) for _ in contexts]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("together", [1, 2])
def test_every_row_once_within_the_budget_and_no_micro_batch_too_many(seed, shared, together):
    contexts, responses = problem(seed)
    rows = list(range(16))
    random.Random(seed).shuffle(rows)
    units = [rows[i : i + together] for i in range(0, 16, together)]
    budget = random.Random(seed).randint(20, 150)
    out = split(units, contexts, responses, budget, shared)
    assert sorted(i for part in out for i in part) == sorted(rows)
    for part in out:
        assert all(set(unit) <= set(part) for unit in units if set(unit) & set(part))
        assert tokens(part, contexts, responses, shared) <= budget or len(part) == together
    for part, after in zip(out, out[1:], strict=False):
        assert tokens(part + after[:together], contexts, responses, shared) > budget


def test_everything_fits_or_every_row_stands_alone():
    contexts, responses = problem(0)
    units = [[i] for i in range(17)]
    assert len(split(units, contexts, responses, 10**6, True)) == 1
    assert len(split(units, contexts, responses, 1, True)) == 17


def test_rows_of_one_prompt_are_neighbours_when_it_is_shared():
    contexts = [(1, 2), (3,), (1, 2), (3,)]
    # both prompts and the four answers of three would be 15; one prompt with its two answers is 8 or 7
    assert split([[0], [1], [2], [3]], contexts, [3, 3, 3, 3], 9, True) == [[0, 2], [1, 3]]


def test_rows_of_like_length_are_neighbours_when_it_is_not():
    assert split([[0], [1], [2], [3]], [(1,)] * 4, [9, 1, 9, 1], 20, False) == [[1, 3], [0, 2]]


def test_nothing_gives_nothing():
    assert split([], [], [], 10, True) == split([], [], [], 10, False) == []
