"""Advantages that read more of an answer than its reward. Worked numbers are those of the papers' own arithmetic."""

import math
from itertools import combinations

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from llmrl.advantages.ahpo import ahpo_gate
from llmrl.advantages.blockwise import blockwise
from llmrl.advantages.canon import canon, canon_entropy, cosine_share
from llmrl.advantages.dpp import dpp, marginal_gains
from llmrl.advantages.group import centred, leave_one_out, standardised
from llmrl.advantages.partial_returns import partial_returns
from llmrl.advantages.polychromic import polychromic
from llmrl.advantages.pvpo import pvpo, pvpo_gate
from llmrl.advantages.salt import salt
from llmrl.advantages.stratified import stratified
from llmrl.objectives.blockwise import blockwise as blockwise_objective
from llmrl.objectives.policy import clipped_surrogate

NOW = tensor(0)
NAN = float("nan")


def one_group(size):
    return torch.zeros(size).long()


def near(found, expected):
    assert_close(found, tensor(expected), rtol=1e-5, atol=1e-6)


# CANON

REWARDS, METRIC = tensor([1.0, 1, 0, 1]), tensor([0.9, 0.2, 0.5, 0.7])


@pytest.mark.parametrize(
    "options, expected",
    [
        # low half: rows 1 and 2, mean 1/2; high half: rows 3 and 0, mean 1
        ({}, [0.5, 0, -1, 0.5]),
        ({"mu": 0.5}, [0.25, 0.25, -0.75, 0.25]),
        ({"mu": 0.0}, [0, 0.5, -0.5, 0]),
        ({"alpha": 0.8}, [0.3, 0.2, -0.8, 0.3]),  # high: .8 - .5; low: 1 - .8 and 0 - .8
    ],
)
def test_canon_compares_halves(options, expected):
    near(canon(REWARDS, METRIC, one_group(4), NOW, **options), expected)


def test_canon_by_entropy_scales_the_low_half():
    entropy, mask = METRIC[:, None].repeat(1, 3), tensor([[True, True, False]] * 4)
    entropy[:, 2] = NAN
    assert_close(canon_entropy(REWARDS, entropy, mask, one_group(4), NOW), canon(REWARDS, METRIC, one_group(4), NOW))
    # low: .8 - 1 and 0 - 1; high: 1 - .4
    near(canon_entropy(REWARDS, entropy, mask, one_group(4), NOW, alpha=0.8), [0.6, -0.2, -1, 0.6])


def test_canon_with_equal_halves_and_mu_one_half_is_dr_grpo():
    generator = torch.Generator().manual_seed(0)
    rewards, metric = torch.randn(24, generator=generator), torch.rand(24, generator=generator)
    ids = torch.arange(24) % 3
    assert_close(canon(rewards, metric, ids, NOW, mu=0.5), centred(rewards, ids))


def test_canon_schedules():
    assert [1 - cosine_share(step) for step in (0, 29, 30, 50, 69, 70)] == pytest.approx(
        [0.98, 0.4, 0.4, 0.7, 0.999075, 0.4], abs=1e-6
    )
    for step in (0, 50):
        for name, mu in [("cosine", 1 - cosine_share(step)), ("cosine_reverse", cosine_share(step))]:
            found = canon(REWARDS, METRIC, one_group(4), tensor(step), schedule=name)
            assert_close(found, canon(REWARDS, METRIC, one_group(4), NOW, mu=mu))
    for name, mu in [("inter_first", 0.25), ("intra_first", 0.75)]:  # three of four are right
        found = canon(REWARDS, METRIC, one_group(4), NOW, schedule=name)
        assert_close(found, canon(REWARDS, METRIC, one_group(4), NOW, mu=mu))


def test_canon_degenerate_groups():
    same = torch.full((3,), 0.9)
    assert (canon(same, METRIC[:3], one_group(3), NOW) == 0).all()
    assert (canon(REWARDS, METRIC, torch.arange(4), NOW, alpha=0.5) == 0).all()
    # the length pressure stays: long .5 · 1 - 1, short 1 - .5 · 1; of three rows two are the upper half
    near(canon(torch.ones(3), tensor([5.0, 9, 7]), one_group(3), NOW, alpha=0.5), [0.5, -0.5, -0.5])
    # ties go by row: the first two are the low half
    near(canon(REWARDS, torch.ones(4), one_group(4), NOW), [0.5, 0.5, -1, 0])


# Stratified

SEARCH_REWARDS, CALLS = tensor([0.2, 0.4, 0.9, 1, 0.1, 0.3]), tensor([0, 0, 1, 1, 2, 1])
GLOBAL = [-0.824619, -0.242535, 1.21267, 1.50372, -1.11566, -0.533577]
WITHIN = [-0.99999, 0.99999, 0.539162, 0.862659, 0, -1.40182]


@pytest.mark.parametrize(
    "alpha, expected",
    [(0.0, GLOBAL), (1.0, WITHIN), (0.6, [-0.929841, 0.50298, 0.808567, 1.11908, -0.446264, -1.05452])],
)
def test_stratified(alpha, expected):
    near(stratified(SEARCH_REWARDS, one_group(6), CALLS, alpha=alpha), expected)


def test_stratified_identities():
    generator = torch.Generator().manual_seed(0)
    rewards, strata = torch.randn(32, generator=generator), torch.arange(32) % 4
    found = stratified(rewards, one_group(32), strata, alpha=1.0, eps=0.0)
    assert_close(stratified(3 * rewards - 2, one_group(32), strata, alpha=1.0, eps=0.0), found, rtol=1e-5, atol=1e-5)
    between = torch.zeros(())
    for k in range(4):
        own = found[strata == k]
        near(own.mean(), 0.0)
        near(own.var(unbiased=False), 1.0)
        between += len(own) * (rewards[strata == k].mean() - rewards.mean()) ** 2
    left = torch.stack([rewards[strata == k] - rewards[strata == k].mean() for k in range(4)])
    assert_close(rewards.var(unbiased=False) - (left**2).mean(), between / 32)


def test_one_stratum_is_grpo_and_many_calls_are_one_stratum():
    n = 6
    expected = standardised(SEARCH_REWARDS, one_group(n), eps=0.0) * math.sqrt(n / (n - 1))  # std with n
    for strata in (torch.zeros(n), tensor([3, 4, 5, 9, 7, 3])):
        assert_close(stratified(SEARCH_REWARDS, one_group(n), strata.long(), eps=0.0), expected)


# SALT

STEPS = tensor([[0, 1, 2], [0, 1, 2], [0, -1, -1]])
EDGES = tensor([[10, 11, 12], [10, 13, 12], [14, -1, -1]])  # s0 a s1, s1 b s2, s2 c s3 | ..., s1 x s2, ... | s0 y s4
TAKEN = STEPS >= 0


@pytest.fixture
def given_credit(monkeypatch):
    """The trajectories' own advantage is the reward as it is."""
    monkeypatch.setattr("llmrl.advantages.salt.standardised", lambda rewards, group_ids: rewards)


@pytest.mark.parametrize(
    "history, expected",
    [
        (None, [[0, 1, 1], [0, -1, -1], [0.2, 0, 0]]),
        (0, [[0, 1, 0], [0, -1, 0], [0.2, 0, 0]]),
        (1, [[0, 1, 1], [0, -1, -1], [0.2, 0, 0]]),  # the last steps differ in the one before
    ],
)
def test_salt_merges_steps_with_the_same_history(given_credit, history, expected):
    found = salt(tensor([1.0, -1, 0.2]), one_group(3), STEPS, EDGES, TAKEN, history=history)
    near(found, [[float(x) for x in row] for row in expected])


def test_salt_conserves_credit_over_steps_and_keeps_what_is_not_shared():
    generator = torch.Generator().manual_seed(1)
    rewards, ids = torch.randn(8, generator=generator), torch.arange(8) % 2
    steps = torch.arange(4).repeat_interleave(2).expand(8, 8)
    hashes = torch.randint(3, (8, 4), generator=generator).repeat_interleave(2, 1)
    mask = torch.ones(8, 8, dtype=torch.bool)
    for base, own in [("grpo", standardised), ("rloo", leave_one_out)]:
        outcome = own(rewards, ids)
        for history in (None, 0, 1, 2):
            found = salt(rewards, ids, steps, hashes, mask, history=history, base=base)
            expected = torch.zeros(8, 4)
            for i in range(8):
                for s in range(4):
                    first = 0 if history is None else max(0, s - history)
                    same = [
                        outcome[j]
                        for j in range(8)
                        for u in range(4)
                        if ids[j] == ids[i]
                        and (history is not None or u == s)
                        and hashes[j, ::2][(0 if history is None else max(0, u - history)) : u + 1].tolist()
                        == hashes[i, ::2][first : s + 1].tolist()
                    ]
                    expected[i, s] = torch.stack(same).mean()
            assert_close(found[:, ::2], expected)
            assert_close(found[:, 1::2], found[:, ::2])
            assert_close(found.sum(), 8 * outcome.sum(), atol=1e-4, rtol=0)
        alone = torch.arange(64).reshape(8, 8)
        assert_close(salt(rewards, ids, steps, alone, mask, base=base), outcome[:, None].expand(8, 8))


def test_salt_of_a_group_without_spread_is_zero_and_groups_do_not_share():
    found = salt(tensor([1.0, 1, 0]), tensor([5, 5, 9]), STEPS, EDGES, TAKEN)
    assert (found == 0).all()
    found = salt(
        tensor([1.0, 0, 1, 0]), tensor([5, 5, 9, 9]), STEPS[[0, 2, 0, 2]], EDGES[[0, 2, 0, 2]], TAKEN[[0, 2, 0, 2]]
    )
    assert_close(found[0], found[2])
    assert found[0, 0] > 0.7


# PVPO


def test_pvpo_subtracts_what_the_reference_earns():
    anchors = tensor([0.5] * 4 + [0.75] * 4)
    near(pvpo(tensor([1.0, 0, 0, 0, 1, 1, 1, 0]), anchors), [0.5, -0.5, -0.5, -0.5, 0.25, 0.25, 0.25, -0.75])
    near(pvpo(torch.ones(2), tensor([0.25, 0.25])), [0.75, 0.75])


def test_pvpo_credits_an_answer_from_elsewhere_where_the_reference_fails():
    near(pvpo_gate(tensor([0.0, 0.25, 1.0])), [1.0, 0.0, 0.0])
    near(pvpo_gate(tensor([0.0, 0.25, 1.0]), unsolved=0.25), [1.0, 0.75, 0.0])


def test_pvpo_does_not_guess_a_missing_anchor():
    with pytest.raises(ValueError, match="1 rollouts belong to prompts without an anchor"):
        pvpo(torch.ones(2), tensor([0.5, NAN]))


# Blockwise

OUTCOME, BRIER = tensor([1.0, 0, 0, 1]), tensor([-0.04, -0.49, -0.09, -0.16])
PARTS = torch.stack([OUTCOME, BRIER], 1)
BLOCKS = tensor([[0, 1]] * 4)
WHOLE = torch.ones(4, 2, dtype=torch.bool)


@pytest.mark.parametrize(
    "baseline, second",
    [
        ("outcome", [0.06, -0.2, 0.2, -0.06]),
        ("group", [0.155, -0.295, 0.105, 0.035]),
        ("batch", [0.155, -0.295, 0.105, 0.035]),
        ("none", [-0.04, -0.49, -0.09, -0.16]),
    ],
)
def test_blockwise(baseline, second):
    found = blockwise(PARTS, torch.ones(2), BLOCKS, WHOLE, one_group(4), baseline=baseline)
    near(found, [[c - 0.5, s] for c, s in zip(OUTCOME.tolist(), second, strict=True)])


def test_blockwise_baselines_differ_over_groups():
    parts, ids = torch.cat([PARTS, PARTS + tensor([0.0, 1.0])]), tensor([0] * 4 + [1] * 4)
    blocks, mask = BLOCKS.repeat(2, 1), WHOLE.repeat(2, 1)
    within = blockwise(parts, torch.ones(2), blocks, mask, ids, baseline="group")[:, 1]
    over = blockwise(parts, torch.ones(2), blocks, mask, ids, baseline="batch")[:, 1]
    assert_close(within[:4], within[4:])
    assert_close(over, within + torch.where(ids == 0, -0.5, 0.5))


def test_blockwise_strata_of_one_tokens_outside_and_parts_that_do_not_apply():
    parts = tensor([[1.0, 0.3], [0, 0.7], [0, 0.7], [0, NAN]])
    blocks = tensor([[0, 1, -1, 2]] * 4)
    mask = tensor([[True] * 4] * 3 + [[False] + [True] * 3])
    found = blockwise(parts, tensor([1.0, 2.0]), blocks, mask, one_group(4))
    near(found, [[0.75, 0, 0, 0], [-0.25, 0, 0, 0], [-0.25, 0, 0, 0], [0, 0, 0, 0.0]])
    near(blockwise(parts, tensor([1.0, 2.0]), blocks, mask, one_group(4), baseline="none")[:, 1], [0.6, 1.4, 1.4, 0])


def test_blocks_weigh_the_same_whatever_their_length():
    logprobs = torch.zeros(2, 6, requires_grad=True)
    blocks = tensor([[0, 0, 0, 1, -1, 0], [1, 1, 1, 1, 1, 1]])
    mask = tensor([[True, True, True, True, True, False], [True, True, False, True, True, False]])
    credit = torch.ones(2, 6)
    loss = blockwise_objective(logprobs, torch.zeros(2, 6), credit, blocks, mask)
    torch.where(mask, loss.values, 0).sum().backward()
    near(-logprobs.grad, [[1 / 3, 1 / 3, 1 / 3, 1, 0, 0], [0.25, 0.25, 0, 0.25, 0.25, 0]])


def test_one_block_of_one_token_is_the_surrogate(worked):
    names = ("logprobs", "old_logprobs", "advantages")
    arrays = [worked[n].detach() for n in names]
    each = torch.arange(3).expand(4, 3)
    found = blockwise_objective(*arrays, each, worked["loss_mask"], clip_high=0.28)
    expected = clipped_surrogate(*arrays, clip_high=0.28)
    assert_close(found.values[worked["loss_mask"]], expected.values[worked["loss_mask"]])


# Polychromic

SIGNATURES = tensor([5, 5, 6, 7])


def test_polychromic():
    near(polychromic(REWARDS_P, SIGNATURES, one_group(4), set_size=2), [0, 0, -1 / 6, 1 / 6])
    near(
        polychromic(REWARDS_P, SIGNATURES, one_group(4), set_size=3),
        [-0.0185185, -0.0185185, -0.0185185, 0.0555556],
    )


REWARDS_P = tensor([1.0, 1, 0, 1])


@pytest.mark.parametrize("uniform_counts", [True, False])
def test_polychromic_against_its_definition(uniform_counts):
    generator = torch.Generator().manual_seed(2)
    rewards, said = torch.rand(7, generator=generator).tolist(), torch.randint(3, (7,), generator=generator).tolist()

    def worth(members):
        kinds = len({said[i] for i in members})
        diversity = 0 if kinds == 1 and not uniform_counts else kinds / len(members)
        return sum(rewards[i] for i in members) / len(members) * diversity

    sets = list(combinations(range(7), 3))
    mean = sum(map(worth, sets)) / len(sets)
    expected = []
    for i in range(7):
        own = [worth(s) - mean for s in sets if i in s]
        expected.append(sum(own) / len(own))
    found = polychromic(tensor(rewards), tensor(said), one_group(7), set_size=3, uniform_counts=uniform_counts)
    near(found, expected)


def test_polychromic_draws_sets_where_there_are_too_many():
    generator = torch.Generator().manual_seed(3)
    rewards, said = torch.rand(12, generator=generator), torch.randint(4, (12,), generator=generator)
    exact = polychromic(rewards, said, one_group(12), set_size=4)  # 495 sets
    drawn = polychromic(rewards, said, one_group(12), set_size=4, max_sets=400)
    assert_close(drawn, polychromic(rewards, said, one_group(12), set_size=4, max_sets=400), rtol=0, atol=0)
    assert not torch.equal(drawn, polychromic(rewards, said, one_group(12), set_size=4, max_sets=400, seed=1))
    assert_close(drawn, exact, rtol=0, atol=0.03)
    assert (
        polychromic(rewards, said, one_group(12), set_size=1, max_sets=1) != 0
    ).sum() <= 1  # the others are in no set


def test_polychromic_degenerate_groups():
    assert (polychromic(torch.zeros(4), SIGNATURES, one_group(4), set_size=2) == 0).all()
    assert (polychromic(torch.full((4,), 0.9), torch.zeros(4).long(), one_group(4), set_size=3) == 0).all()
    assert (polychromic(torch.ones(4), SIGNATURES, one_group(4), set_size=2) != 0).any()  # all right, and not all alike
    small = polychromic(
        torch.cat([REWARDS_P, REWARDS_P[:1]]), torch.cat([SIGNATURES, SIGNATURES[:1]]), tensor([0] * 4 + [1])
    )
    assert small[4] == 0
    with pytest.raises(ValueError, match="sets of 5, but the largest group has 4 rollouts"):
        polychromic(REWARDS_P, SIGNATURES, one_group(4), set_size=5)


# DPP

E1, E2 = [1.0, 0.0], [0.0, 1.0]


def test_dpp_gains_and_rewards():
    gains = marginal_gains(tensor([E1, E1, E2]), one_group(3))
    near(gains.float(), [0.405465, 0.405465, 0.693147])
    near(0.5 + 0.5 * gains.float(), [0.702733, 0.702733, 0.846574])
    found = dpp(torch.ones(3), tensor([E1, E1, E2]), one_group(3))
    assert_close(found, standardised(tensor([0.702733, 0.702733, 0.846574]), one_group(3)), rtol=1e-4, atol=1e-4)


def test_dpp_gains_against_determinants():
    generator = torch.Generator().manual_seed(4)
    points = torch.nn.functional.normalize(torch.randn(9, 5, generator=generator), dim=1)
    ids = tensor([3, 3, 8, 3, 8, 8, 3, 8, 3])
    found = marginal_gains(points, ids)

    def volume(rows):
        chosen = points[rows].double()
        return torch.linalg.slogdet(chosen @ chosen.T + torch.eye(len(rows)))[1]

    for i in range(9):
        own = [j for j in range(9) if ids[j] == ids[i]]
        expected = volume(own) - volume([j for j in own if j != i])
        assert_close(found[i], expected, rtol=0, atol=1e-6)


def test_dpp_gains_keep_their_small_differences():
    # two nearly equal answers: what is left between gains is scaled up to 1, and must not be rounding's
    points = torch.nn.functional.normalize(
        tensor([[1.0, 0, 0], [1, 0.002, 0.001], [1, 0, 0.003]], dtype=torch.float64), dim=1
    )
    whole = (points @ points.T + torch.eye(3, dtype=torch.float64)).logdet()
    rest = [torch.tensor([j for j in range(3) if j != i]) for i in range(3)]
    without = [(points[r] @ points[r].T + torch.eye(2, dtype=torch.float64)).logdet() for r in rest]
    assert_close(marginal_gains(points, one_group(3)), whole - torch.stack(without), rtol=0, atol=1e-9)


def test_dpp_degenerate_groups():
    near(marginal_gains(tensor([E1]), one_group(1)).float(), [math.log(2)])  # nothing to compare with
    near(marginal_gains(tensor([E1, E1]), one_group(2)).float(), [math.log(1.5)] * 2)  # a copy
    copies = torch.nn.functional.normalize(torch.randn(1, 7, generator=torch.Generator().manual_seed(0)), dim=1)
    assert (dpp(torch.full((9,), 0.9), copies.expand(9, 7), one_group(9)) == 0).all()
    assert (dpp(torch.zeros(3), tensor([E1, E1, E2]), one_group(3)) == 0).all()  # the gate
    assert (dpp(torch.zeros(3), tensor([E1, E1, E2]), one_group(3), gate=False) != 0).all()


# Partial policy gradients

TURNS = tensor([[1.0, 0, 2, -1, 3]])
IDS = torch.arange(5)[None]
ALL = torch.ones(1, 5, dtype=torch.bool)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, [5, 4, 4, 2, 3]),
        ({"mode": "greedy"}, [1, 0, 2, -1, 3]),
        ({"mode": "k_step", "horizon": 2}, [1, 2, 1, 2, 3]),
        ({"mode": "segments", "segments": [0, 0, 1, 1, 1]}, [1, 0, 4, 2, 3]),
        ({"mode": "segments", "segments": [0, 0, 1]}, [1, 0, 4, 2, 3]),  # the last one goes on
        ({"mode": "k_step", "horizon": 1}, [1, 0, 2, -1, 3]),
        ({"mode": "k_step", "horizon": 5}, [5, 4, 4, 2, 3]),
        ({"mode": "segments", "segments": [0]}, [5, 4, 4, 2, 3]),
        ({"prefix_scores": True}, [3, 2, 3, 1, 4]),  # rewards 1, -1, 2, -3, 4
    ],
)
def test_partial_returns(options, expected):
    near(partial_returns(TURNS, IDS, ALL, one_group(1), baseline="none", **options), [[float(x) for x in expected]])


def test_partial_returns_lie_on_every_counted_token_of_the_step():
    rewards = tensor([[NAN, 0.5, 0.5, NAN, 2.0, 7.0]])
    ids = tensor([[0, 0, 0, 0, 2, -1]])
    mask = tensor([[False, True, True, False, True, True]])
    near(partial_returns(rewards, ids, mask, one_group(1), baseline="none"), [[0.0, 3, 3, 0, 2, 0]])


def test_partial_returns_against_those_that_reach_the_step():
    rewards = tensor([[1.0, 0, 2], [0.0, 4, 0], [3.0, 0, 0]])
    ids = tensor([[0, 1, 2], [0, 1, 1], [0, -1, -1]])
    found = partial_returns(rewards, ids, ids >= 0, one_group(3))
    # returns: 3, 2, 2 | 4, 4 | 3; means over who is there: 10/3, 3, 2
    near(found, [[-1 / 3, -1, 0], [2 / 3, 1, 1], [-1 / 3, 0, 0]])
    assert (
        partial_returns(torch.full((3, 1), 0.9), torch.zeros(3, 1).long(), ids[:, :1] >= 0, one_group(3)) == 0
    ).all()


@pytest.mark.parametrize("mode", ["k_step", "segments"])
def test_partial_returns_need_what_their_mode_asks_for(mode):
    with pytest.raises(ValueError, match=f"mode {mode} with"):
        partial_returns(TURNS, IDS, ALL, one_group(1), mode=mode)


# AHPO's gate


def test_the_gate_opens_where_too_few_are_right():
    rewards, ids = tensor([1.0, 0, 1, 0, 0, 0]), tensor([0, 0, 1, 1, 2, 2])
    near(ahpo_gate(rewards, ids), [0.0, 0, 0, 0, 1, 1])
    near(ahpo_gate(rewards, ids, min_right=2), [1.0] * 6)
    near(ahpo_gate(rewards, ids, threshold=1.5), [1.0] * 6)
