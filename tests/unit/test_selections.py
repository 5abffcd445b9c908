"""What is trained on out of what was sampled."""

from itertools import combinations

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from llmrl.plan import when
from llmrl.selections.d3s import d3s, most_varied
from llmrl.selections.drop import drop_stale, drop_truncated
from llmrl.selections.dynamic_sampling import dynamic_sampling
from llmrl.selections.pairs import all_pairs, best_worst_pairs, disjoint_pairs
from llmrl.selections.prompts import dph_split, pvpo_presample

NAN = float("nan")
IDS = tensor([7, 3, 7, 3, 7, 9])
REWARDS = tensor([0.0, 1, 2, 1, 2, 5])


# Dynamic sampling


def test_groups_that_are_all_right_or_all_wrong_are_dropped():
    parts = tensor([[1.0, 0.1], [1, 0.1], [0, 0.1], [1, 0], [1, 0.1], [1, 0]])
    found = dynamic_sampling(parts, IDS)
    assert found.keep.tolist() == [True, False, True, False, True, False]  # form alone is no difference
    assert found.want_more == 10 and dynamic_sampling(parts, IDS, max_batches=16).want_more == 16


def test_how_right_a_rollout_is_says_the_first_scorer_that_applies():
    parts = tensor([[NAN, 1.0], [NAN, 0.0], [0.5, 1], [0.5, 0], [NAN, NAN], [NAN, NAN]])
    found = dynamic_sampling(parts, tensor([0, 0, 1, 1, 2, 2]))
    assert found.keep.tolist() == [True, True, False, False, False, False]


# D3S

CREDIT = tensor([1.5, -0.5, -0.5, -0.5, 0, 0, 0, 0, 0.9, 0.9, -0.9, -0.9])


def test_the_rows_of_largest_variance():
    assert most_varied(CREDIT, 4).tolist() == [0, 9, 10, 11]
    assert most_varied(CREDIT, 12).tolist() == most_varied(CREDIT, 99).tolist() == list(range(12))


def test_no_other_rows_vary_more():
    generator = torch.Generator().manual_seed(0)
    for trial in range(20):
        values = torch.randn(9, generator=generator) + 1000 * (trial % 2)
        if trial % 3 == 0:
            values = values.round()
        for size in (1, 2, 4, 7):
            chosen = values[most_varied(values, size)].double()
            best = max(values[list(rows)].double().var(unbiased=False) for rows in combinations(range(9), size))
            assert_close(chosen.var(unbiased=False), best, rtol=1e-6, atol=1e-9)


def test_some_rows_of_standard_scores_vary_by_one_at_least():
    values = torch.randn(64, generator=torch.Generator().manual_seed(1))
    values = (values - values.mean()) / values.std(unbiased=False)
    assert all(values[most_varied(values, size)].var(unbiased=False) >= 1 - 1e-6 for size in (2, 8, 32, 64))


def test_the_tokens_where_credit_meets_uncertainty():
    credit = tensor([[2.0, 2, 2, NAN], [-1, -1, NAN, NAN]])
    entropy = tensor([[0.1, 0.9, 0.5, NAN], [0.3, 1.5, NAN, NAN]])
    mask = entropy.isfinite()
    found = d3s(credit, entropy, mask, tensor([0, 0]), tensor(0.0), initial_share=1.0, initial_token_share=0.4)
    assert found.keep.all()
    assert found.loss_mask.int().tolist() == [[0, 1, 0, 0], [0, 1, 0, 0]]


@pytest.mark.parametrize("p, rows, tokens", [(0.0, 4, 2), (0.25, 7, 4), (1.0, 16, 16)])
def test_the_schedule_of_both_levels(p, rows, tokens):
    # of 16 rows with one token each: a quarter, 7/16, all; of 512 it would be 128, 224, 512
    credit = torch.randn(16, 1, generator=torch.Generator().manual_seed(2))
    shares = {"initial_token_share": 0.5, "final_token_share": 1.0}
    mask = torch.ones(16, 1, dtype=torch.bool)
    found = d3s(credit, torch.ones(16, 1), mask, torch.zeros(16), tensor(p), **shares)
    assert int(found.keep.sum()) == rows
    assert int(found.loss_mask.sum()) == tokens  # ⌊.5 · 4⌋, ⌊.625 · 7⌋, all
    assert (found.loss_mask.any(1) <= found.keep).all()


def test_every_group_keeps_its_share():
    credit = torch.cat([CREDIT, 10 * CREDIT])[:, None]
    ids, mask = torch.arange(24) // 12, torch.ones(24, 1, dtype=torch.bool)
    options = {"initial_share": 1 / 3, "initial_token_share": 1.0}
    within = d3s(credit, torch.ones(24, 1), mask, ids, tensor(0.0), level="group", **options)
    assert within.keep.nonzero().flatten().tolist() == [0, 9, 10, 11, 12, 21, 22, 23]
    over = d3s(credit, torch.ones(24, 1), mask, ids, tensor(0.0), **options)
    assert int(over.keep.sum()) == 8 and not over.keep[:12].any()


def test_nothing_to_choose_from():
    nothing = torch.zeros(3, 2, dtype=torch.bool)
    found = d3s(torch.full((3, 2), NAN), torch.full((3, 2), NAN), nothing, torch.zeros(3), tensor(0.5))
    assert not found.loss_mask.any()


# Prompts, truncation, age


def test_prompts_are_chosen_by_what_the_reference_makes_of_them():
    anchors = tensor([0.0, 0.125, 0.875, 1.0])
    assert pvpo_presample(anchors).keep.tolist() == [False, True, True, False]
    assert pvpo_presample(anchors, unsolved=-1.0).keep.tolist() == [True, True, True, False]
    assert dph_split(anchors).keep.tolist() == [True, True, True, False]
    assert when(pvpo_presample) == when(dph_split) == "ahead"


def test_selections_run_where_their_arrays_are():
    assert when(d3s) == "credited"
    assert {when(part) for part in (dynamic_sampling, all_pairs, drop_truncated, drop_stale)} == {"scored"}


def test_truncated_answers_leave_the_loss_and_not_the_batch():
    mask = tensor([[True, True, False], [True, False, True]])
    found = drop_truncated(tensor([False, True]), mask)
    assert found.keep is None
    assert found.loss_mask.tolist() == [[True, True, False], [False] * 3]


def test_stale_rollouts_are_dropped():
    assert drop_stale(tensor([0, 1, 2])).keep.tolist() == [True, True, False]
    assert drop_stale(tensor([0, 1, 2]), max_staleness=0).keep.tolist() == [True, False, False]


# Pairs


def test_best_against_worst():
    found = best_worst_pairs(REWARDS, IDS)
    assert found.pairs.tolist() == [[2, 0]]  # the first of two best; a tie has no best, one rollout no other
    assert found.keep.tolist() == [True, False, True, False, False, False]


def test_every_two_that_differ_or_all():
    assert all_pairs(REWARDS, IDS).pairs.tolist() == [[2, 0], [4, 0]]
    assert all_pairs(REWARDS, IDS, ties=True).pairs.tolist() == [[1, 3], [2, 0], [4, 0], [2, 4]]
    assert all_pairs(REWARDS, IDS).keep.tolist() == [True, False, True, False, True, False]


def test_each_rollout_in_one_pair():
    assert disjoint_pairs(REWARDS, IDS).pairs.tolist() == [[1, 3], [2, 0]]
    assert disjoint_pairs(REWARDS, IDS, ties=False).pairs.tolist() == [[2, 0]]


@pytest.mark.parametrize("pairs", [best_worst_pairs, all_pairs, disjoint_pairs])
def test_there_may_be_no_pair(pairs):
    found = pairs(tensor([1.0, 2.0]), tensor([0, 1]))
    assert found.pairs.shape == (0, 2) and not found.keep.any()
