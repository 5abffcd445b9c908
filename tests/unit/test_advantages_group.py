"""Baselines of a group: numbers worked out by hand, identities, and a slow loop written from each formula."""

import math
from functools import partial
from itertools import combinations
from statistics import mean, pstdev, stdev

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from llmrl.advantages.batch import gpg, scalerl
from llmrl.advantages.gdpo import gdpo
from llmrl.advantages.group import centred, leave_one_out, length_weighted, maxrl, standardised
from llmrl.advantages.passk import passk_analytic, passk_top
from llmrl.advantages.rec import asymre, opmd, rec
from llmrl.batch import Loss
from llmrl.objectives.rec import rec as rec_loss
from llmrl.objectives.weighted import cispo_rollout
from llmrl.ops.groups import group_max, group_mean, group_spread, group_std
from llmrl.ops.reduce import reduce_tokens, row_coefficients
from llmrl.selections.red import kept, red_drop, red_weight

NAN = float("nan")
ONE = torch.zeros(4, dtype=torch.long)
FIRST = tensor([1.0, 0, 0, 0])


def rec_of(rewards, group_ids, weights=None, **options):
    weights = torch.ones(len(rewards), 1) if weights is None else weights[:, None].float()
    return rec(rewards, weights, torch.ones(len(rewards), 1, dtype=torch.bool), group_ids, **options)


@pytest.mark.parametrize(
    "part, expected",
    [
        (leave_one_out, [1, -1 / 3, -1 / 3, -1 / 3]),
        (standardised, [1.499997, -0.499999, -0.499999, -0.499999]),
        (centred, [0.75, -0.25, -0.25, -0.25]),
        (maxrl, [2.99999, -0.999996, -0.999996, -0.999996]),
    ],
)
def test_one_success_of_four(part, expected):
    assert_close(part(FIRST, ONE), tensor(expected), rtol=2e-6, atol=0)


def test_the_token_weighted_baseline():
    lengths = tensor([2, 4, 6, 8])  # 2 of 20 tokens were rewarded
    found = length_weighted(FIRST, lengths, ONE)
    assert_close(found, tensor([0.9, -0.1, -0.1, -0.1]))
    assert_close((found * lengths).sum(), tensor(0.0))


def test_a_group_that_wrote_nothing_has_no_token_weighted_baseline():
    assert (length_weighted(FIRST, torch.zeros(4, dtype=torch.long), ONE) == 0).all()


def test_leave_one_out_of_two_prompts():
    ids = tensor([0, 0, 0, 0, 1])
    assert_close(leave_one_out(tensor([1.0, 0, 0, 1, 1]), ids), tensor([2.0, -2, -2, 2, 0]) / 3)


def test_leave_one_out_can_be_standardised_over_the_batch():
    ids = tensor([0, 0, 0, 0, 1, 1])
    raw = leave_one_out(tensor([1.0, 0, 0, 1, 0.5, 0]), ids)
    found = leave_one_out(tensor([1.0, 0, 0, 1, 0.5, 0]), ids, standardise=True)
    assert_close(found, (raw - raw.mean()) / (raw.std() + 1e-4))


def test_a_scale_of_the_batch():
    # groups 1 0 | 0.4 0.2: centred ±0.5 and ±0.1 over the std of all four, 0.432049
    found = standardised(tensor([1.0, 0, 0.4, 0.2]), tensor([5, 5, 3, 3]), scale="batch")
    assert_close(found, tensor([0.5, -0.5, 0.1, -0.1]) / (0.4320494 + 1e-6))


def test_maxrl_needs_a_success_and_never_turns_a_sign():
    assert (maxrl(tensor([-1.0, 1.0]), tensor([0, 0])) == 0).all()
    assert (maxrl(tensor([-3.0, 1.0]), tensor([0, 0])).sign() == tensor([-1, 1])).all()


def test_the_root_mean_square_is_over_groups_with_spread():
    # ±0.5 in the first group; the second says nothing, also of the scale
    found = scalerl(tensor([1.0, 0, 0, 1, 1, 1]), tensor([0, 0, 0, 0, 1, 1]))
    assert_close(found, tensor([0.5, -0.5, -0.5, 0.5, 0, 0]) / 0.5001)


def test_few_successes_speak_louder():
    found = gpg(tensor([1.0, 0, 0, 0, 1, 1]), tensor([0, 0, 0, 0, 1, 1]))  # six rows, three with a reward
    assert_close(found, 2 * tensor([0.75, -0.25, -0.25, -0.25, 0, 0]))


def test_several_rewards_normalised_by_themselves():
    parts = torch.stack([tensor([1.0, 0, 0, 0, 1, 1, 1, 0]), tensor([1.0, 1, 0, 1, 1, 0, 1, 1])], 1)
    found = gdpo(parts, tensor([1.0, 0.5]), tensor([0] * 4 + [1] * 4))
    expected = [1.6905, -0.2415, -1.2075, -0.2415, 0.724499, -0.2415, 0.724499, -1.2075]
    assert_close(found, tensor(expected), rtol=2e-6, atol=1e-6)


def test_rewards_of_different_spread_are_kept_apart():
    # rows 0 and 1 have the same sum, but the second reward is rarer
    parts = tensor([[1.0, 0], [0, 1], [1, 0], [0, 0]])
    weights = torch.ones(2)
    summed = standardised(parts.sum(1), ONE)
    found = gdpo(parts, weights, ONE)
    assert summed[0] == summed[1] and found[1] > found[0] + 0.1


def test_a_part_that_does_not_apply_leaves_the_statistics_of_its_column():
    parts = tensor([[1.0, NAN], [0, 0.5], [0, 1.5], [NAN, NAN]])
    found = gdpo(parts, torch.ones(2), ONE, eps=0.0)
    first = (tensor([1.0, 0, 0]) - 1 / 3) / tensor([1.0, 0, 0]).std()
    second = tensor([0, -0.5, 0.5]) / tensor([0.5, 1.5]).std()
    summed = first + second
    assert_close(found[:3], (summed - summed.mean()) / summed.std())
    assert found[3] == 0


def test_pass_at_three_of_six():
    found = passk_analytic(tensor([1.0, 0, 0, 1, 0, 0]), torch.zeros(6, dtype=torch.long), k=3)
    assert_close(found, tensor([0.5, -0.25, -0.25, 0.5, -0.25, -0.25]))
    assert_close(found.sum(), tensor(0.0))


@pytest.mark.parametrize("right", [1, 2, 4])
@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_the_closed_form_is_the_mean_over_all_sets(right, k):
    rewards = tensor([1.0] * right + [0.0] * (6 - right))
    sets = list(combinations(range(6), k))
    earned = [float(max(rewards[list(chosen)])) for chosen in sets]
    found = passk_analytic(rewards, torch.zeros(6, dtype=torch.long), k=k)
    if pstdev(earned) == 0:
        assert (found == 0).all()
        return
    by_row = [
        mean((e - mean(earned)) / pstdev(earned) for e, s in zip(earned, sets, strict=True) if row in s)
        for row in range(6)
    ]
    assert_close(found, tensor(by_row))


def test_pass_at_one_is_grpo_with_the_population_s_deviation():
    rewards, ids = tensor([1.0, 0, 0, 1, 0, 0, 0]), tensor([0, 0, 0, 0, 0, 1, 1])
    expected = (rewards - group_mean(rewards, ids)) / group_std(rewards, ids, population=True).clamp(min=1e-9)
    assert_close(passk_analytic(rewards, ids, k=1), expected)


def test_a_group_smaller_than_k_is_one_set():
    assert (passk_analytic(tensor([1.0, 0, 0]), torch.zeros(3, dtype=torch.long), k=4) == 0).all()


def test_the_best_gets_its_lead():
    found = passk_top(tensor([0.2, 0.9, 0.5, 0.1]), ONE)
    assert_close(found, tensor([0, 1.11297, 0, 0]), rtol=1e-5, atol=0)
    assert_close(passk_top(tensor([0.2, 0.9, 0.5, 0.1]), ONE, standardise=False), tensor([0, 0.4, 0, 0]))
    assert (passk_top(tensor([1.0, 1, 0, 0]), ONE) == 0).all()


def test_baselines_without_an_assumption_on_the_sampler():
    rewards, ids = tensor([1.0, 0, 0, 1, 1]), tensor([0, 0, 0, 0, 1])
    assert_close(rec_of(rewards, ids), tensor([0.5, -0.5, -0.5, 0.5, 1]))
    assert_close(asymre(rewards, ids), tensor([0.6, -0.4, -0.4, 0.6, 1]))
    assert_close(opmd(rewards, ids), tensor([0.5, -0.5, -0.5, 0.5, 1]))
    found = opmd(rewards, ids, baseline="log_mean_exp", tau=0.5)
    assert_close(found, tensor([0.28311, -0.71689, -0.71689, 0.28311, 1]), rtol=1e-5, atol=1e-6)


def test_a_soft_maximum_nears_the_mean_and_the_largest_reward():
    rewards = tensor([0.3, 0.9, 0.0, 0.4])
    assert_close(opmd(rewards, ONE, baseline="log_mean_exp", tau=1e3), opmd(rewards, ONE), rtol=0, atol=2e-4)
    assert_close(opmd(rewards, ONE, baseline="log_mean_exp", tau=1e-3), rewards - 0.9, rtol=0, atol=2e-3)


def test_standardised_by_the_population():
    assert_close(rec_of(FIRST, ONE, standardise=True), tensor([0.75, -0.25, -0.25, -0.25]) / (math.sqrt(3) / 4 + 1e-6))


def test_a_shifted_baseline_speaks_in_a_group_without_spread():
    assert_close(asymre(torch.full((4,), 0.9), ONE), torch.full((4,), 0.1))
    assert (rec_of(torch.full((4,), 0.9), ONE) == 0).all()
    assert (opmd(torch.full((4,), 0.9), ONE, baseline="log_mean_exp") == 0).all()


def test_surplus_failures_are_dropped_by_their_draws():
    rewards, ids = tensor([1.0, 0, 0, 0, 0]), torch.zeros(5, dtype=torch.long)
    keep = kept(rewards, ids, tensor([0.9, 0.4, 0.1, 0.8, 0.3]))
    assert keep.tolist() == [True, False, False, True, False]
    assert_close(rec_of(rewards, ids, keep), tensor([0.5, 0, 0, -0.5, 0]))


def test_a_single_kept_row_gets_its_reward():
    assert_close(rec_of(tensor([0.5, 1.0]), tensor([0, 0]), tensor([1, 0])), tensor([0.5, 0.0]))


def test_a_row_is_dropped_only_when_all_its_tokens_are():
    weights, mask = tensor([[0.0, 1], [0, 5], [1, 1]]), tensor([[True, True], [True, False], [False, False]])
    # the second row's other weight stands under the mask; the third has no token, and its reward still counts
    assert_close(rec(tensor([1.0, 9, 0]), weights, mask, torch.zeros(3).long()), tensor([0.5, 0, -0.5]))


def test_no_more_failures_than_successes_are_left_and_each_goes_equally_often():
    rewards = tensor([1.0, 0, 0, 0, 1, 1, 0, 0.9, 0.9])
    ids = tensor([4, 4, 4, 4, 7, 7, 7, 9, 9])
    counts = torch.zeros(9)
    for step in range(300):
        weights = red_drop(rewards, ids, tensor(step)).weights
        assert weights[:4].sum() == 2
        counts += weights
    assert (counts[[0, 4, 5, 6, 7, 8]] == 300).all()
    assert (counts[1:4] - 100).abs().max() < 30


def test_a_draw_depends_on_seed_and_step_alone():
    rewards, ids = torch.zeros(20).index_fill(0, tensor([3]), 1.0), torch.zeros(20, dtype=torch.long)
    one, again = (red_drop(rewards, ids, tensor(7.0), seed=1).weights for _ in range(2))
    assert torch.equal(one, again)
    assert not torch.equal(one, red_drop(rewards, ids, tensor(8.0), seed=1).weights)
    assert not torch.equal(one, red_drop(rewards, ids, tensor(7.0), seed=2).weights)


def test_success_weighs_more():
    found = red_weight(tensor([[1.0, -1.0], [500.0, NAN]]), tensor([[True, True], [True, False]]), temperature=0.5)
    assert_close(found.weights, tensor([[math.exp(2), math.exp(-2)], [math.exp(20), 0]]))


def slow(rewards, lengths, name, **options):
    """One group's credit, as its formula reads."""
    n, r_mean = len(rewards), mean(rewards)
    if name == "rloo":
        return [r - (sum(rewards) - r) / (n - 1) for r in rewards]
    if name == "dr_grpo":
        return [r - r_mean for r in rewards]
    if name == "grpo":
        return [(r - r_mean) / (stdev(rewards) + 1e-6) for r in rewards]
    if name == "opo":
        baseline = sum(x * r for x, r in zip(lengths, rewards, strict=True)) / sum(lengths)
        return [r - baseline for r in rewards]
    if name == "maxrl":
        return [(r - r_mean) / (r_mean + 1e-6) for r in rewards]
    if name == "top":
        first, second = sorted(rewards)[-1], sorted(rewards)[-2]
        return [(first - second) / (stdev(rewards) + 1e-6) if r == first else 0.0 for r in rewards]
    if name == "rec":
        return [(r - r_mean) / (pstdev(rewards) + 1e-6) for r in rewards]
    if name == "opmd":
        level = 0.7 * math.log(mean(math.exp(r / 0.7) for r in rewards))
        return [r - level for r in rewards]
    raise KeyError(name)


@pytest.mark.parametrize(
    "name, part",
    {
        "rloo": leave_one_out,
        "dr_grpo": centred,
        "grpo": standardised,
        "maxrl": maxrl,
        "top": passk_top,
        "rec": partial(rec_of, standardise=True),
        "opmd": partial(opmd, baseline="log_mean_exp", tau=0.7),
        "opo": None,
    }.items(),
)
def test_against_a_slow_loop_over_groups_of_different_size(name, part):
    generator = torch.Generator().manual_seed(3)
    ids = tensor([5, 9, 5, 2, 9, 5, 2, 9, 9, 5])
    for _ in range(5):
        rewards = torch.rand(10, generator=generator, dtype=torch.float64)
        lengths = torch.randint(1, 50, (10,), generator=generator)
        found = length_weighted(rewards, lengths, ids) if name == "opo" else part(rewards, ids)
        for group in (2, 5, 9):
            rows = ids == group
            expected = slow(rewards[rows].tolist(), lengths[rows].tolist(), name)
            assert_close(found[rows], tensor(expected, dtype=torch.float64))


PARTS = {
    "grpo": standardised,
    "batch": partial(standardised, scale="batch"),
    "rloo": leave_one_out,
    "rloo_std": partial(leave_one_out, standardise=True),
    "dr_grpo": centred,
    "opo": lambda r, ids: length_weighted(r, torch.arange(1, len(r) + 1), ids),
    "maxrl": maxrl,
    "scalerl": scalerl,
    "gpg": gpg,
    "top": passk_top,
    "analytic": passk_analytic,
    "rec": rec_of,
    "opmd": partial(opmd, baseline="log_mean_exp"),
    "asymre": asymre,
}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_a_row_that_no_scorer_judged_is_as_if_it_were_not_there(part):
    rewards, ids = tensor([1.0, NAN, 0, 0.3, NAN, 0.9, 0.8]), tensor([0, 0, 0, 0, 1, 2, 2])
    there = ~rewards.isnan()
    found = part(rewards, ids)
    if part is PARTS["opo"]:
        places = torch.arange(1, 8)[there]
        assert_close(found[there], length_weighted(rewards[there], places, ids[there]))
    else:
        assert_close(found[there], part(rewards[there], ids[there]))
    assert (found[~there] == 0).all()


@pytest.mark.parametrize("name", [n for n in PARTS if n not in ("rec", "opmd", "asymre")])
def test_a_group_of_one_gets_nothing(name):
    assert (PARTS[name](tensor([0.7, 0.2]), tensor([3, 1])) == 0).all()


@pytest.mark.parametrize("name", ["rec", "opmd", "asymre"])
def test_a_group_of_one_gets_its_reward_without_a_baseline(name):
    assert_close(PARTS[name](tensor([0.7, 0.2]), tensor([3, 1])), tensor([0.7, 0.2]))


@pytest.mark.parametrize("name", [n for n in PARTS if n != "asymre"])
def test_equal_rewards_that_rounding_tells_apart_get_nothing(name):
    for size in range(2, 12):
        rewards = torch.cat([torch.full((size,), 0.9), tensor([1.0, 0.0])])
        found = PARTS[name](rewards, tensor([0] * size + [1, 1]))
        assert (found[:size] == 0).all()


def test_group_statistics_leave_out_what_is_not_there():
    x, ids = tensor([1.0, NAN, 3, NAN, 5]), tensor([0, 0, 0, 1, 2])
    assert group_mean(x, ids).tolist() == [2, 2, 2, 0, 5]
    assert_close(group_std(x, ids), tensor([math.sqrt(2)] * 3 + [0, 0]))
    assert_close(group_std(x, ids, population=True), tensor([1.0, 1, 1, 0, 0]))
    assert group_max(x, ids).tolist() == [3, 3, 3, -math.inf, 5]
    assert group_spread(x, ids).tolist() == [True, True, True, False, False]


def test_identities_between_baselines():
    generator = torch.Generator().manual_seed(6)
    rewards, ids = torch.rand(9, generator=generator), tensor([1, 2, 1, 2, 1, 2, 1, 2, 1])
    plain, sizes = centred(rewards, ids), torch.where(ids == 1, 5, 4)
    assert_close(leave_one_out(rewards, ids), plain * sizes / (sizes - 1))
    assert_close(length_weighted(rewards, torch.full((9,), 7), ids), plain)
    assert_close(standardised(rewards, ids, eps=0.0), plain / group_std(rewards, ids))
    assert_close(maxrl(rewards, ids, eps=0.0), plain / group_mean(rewards, ids))
    assert_close(scalerl(rewards, ids, eps=0.0), plain / plain.square().mean().sqrt())
    for part in (rec_of, opmd, partial(asymre, shift=0.0), gpg):
        assert_close(part(rewards, ids), plain)


def token_mean(loss, given):
    mask = given["loss_mask"]
    return reduce_tokens(loss.values, mask, row_coefficients("token_mean", mask.sum(1), given["group_ids"], 3))


def test_red_weight_on_the_worked_input(worked):
    weights = red_weight(worked["advantages"], worked["loss_mask"]).weights
    loss = rec_loss(worked["logprobs"], worked["old_logprobs"], worked["advantages"], mask="none")
    total = token_mean(Loss(loss.values * weights), worked)
    total.backward()
    assert_close(total.detach(), tensor(0.668287), rtol=1e-5, atol=1e-6)
    rows = tensor([-0.302031, 0.0408755, -0.0915956, 0.0336961])[:, None] * worked["loss_mask"]
    assert_close(worked["logprobs"].grad, rows, rtol=1e-5, atol=1e-6)


def test_a_shifted_baseline_is_reinforce_and_some_likelihood(worked):
    rewards, ids = worked["rewards"], worked["group_ids"]
    gradients = []
    for credit, options in ((asymre(rewards, ids), {}), (rec_of(rewards, ids), {"forward_kl_coef": 0.1})):
        worked["logprobs"].grad = None
        credit = credit[:, None].expand(4, 3)
        token_mean(
            rec_loss(worked["logprobs"], worked["old_logprobs"], credit, mask="none", **options), worked
        ).backward()
        gradients.append(worked["logprobs"].grad)
    assert_close(gradients[0], gradients[1])


def test_scalerl_on_the_worked_input(worked):
    sampler = tensor([[-0.68, -1.05, -0.35], [-0.85, -1.3, 0], [-0.55, -0.8, -2.1], [-1.5, 0, 0]])
    mask, ids = worked["loss_mask"], worked["group_ids"]
    credit = scalerl(worked["rewards"], ids)
    assert_close(credit, tensor([0.9998, -0.9998, 0.9998, -0.9998]), rtol=1e-5, atol=0)
    loss = cispo_rollout(worked["logprobs"], sampler, credit[:, None].expand(4, 3), ratio_max=5.0)
    total = reduce_tokens(loss.values, mask, row_coefficients("group_mean", mask.sum(1), ids, 3))
    assert_close(total.detach(), tensor(0.278401), rtol=1e-5, atol=1e-6)
