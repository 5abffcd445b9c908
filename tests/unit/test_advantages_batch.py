"""Credit on the scale of a batch, or against a baseline that remembers: golden numbers, identities, slow loops."""

import json
import math

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from llmrl.advantages.bnpo import bnpo, normaliser
from llmrl.advantages.gae import gae
from llmrl.advantages.group import centred, leave_one_out, standardised
from llmrl.advantages.reinforce import Reinforce, remax
from llmrl.advantages.reinforce_pp import reinforce_pp, reinforce_pp_baseline

TOKEN_REWARDS = tensor([[0, 0, 1, 0], [0, 0.5, 0, 0]])
MASK = tensor([[True, True, True, False], [True, True, False, False]])
IDS = torch.arange(3).repeat_interleave(4)
ONES = tensor([1.0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0])
OTHER = tensor([1.0, 1, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1])
NO_PARTS = torch.zeros(12, 1)


def test_rewards_still_to_come_whitened_over_the_batch():
    # returns 1 1 1 | .5 .5: mean .8, variance with n-1 .075
    expected = [[0.730297, 0.730297, 0.730297, 0], [-1.09545, -1.09545, 0, 0]]
    assert_close(reinforce_pp(TOKEN_REWARDS, MASK), tensor(expected), rtol=1e-5, atol=1e-6)


def test_rewards_still_to_come_are_discounted_along_counted_tokens():
    rewards, mask = tensor([[0.0, 9, 1], [0, 0, 0]]), tensor([[True, False, True], [True, True, True]])
    returns = tensor([0.5, 1, 0, 0, 0])  # the hole takes no discount
    expected = (returns - returns.mean()) / (returns.var() + 1e-8).sqrt()
    assert_close(reinforce_pp(rewards, mask, gamma=0.5)[mask], expected)


def test_without_a_critic_gae_with_lambda_one_is_reinforce_pp():
    generator = torch.Generator().manual_seed(0)
    rewards, mask = torch.randn(5, 7, generator=generator), torch.rand(5, 7, generator=generator) > 0.3
    for gamma in (1.0, 0.9):
        expected = gae(rewards, torch.zeros(5, 7), mask, gamma=gamma, gae_lambda=1.0).advantages
        assert_close(reinforce_pp(rewards, mask, gamma=gamma), expected)


def test_a_group_s_baseline_whitened_over_tokens():
    rewards, ids = tensor([1.0, 0, 1, 1]), tensor([0, 0, 3, 3])
    mask = tensor([[True, True], [True, False], [True, True], [False, True]])
    # centred .5 .5 -.5 0 0 0 over six tokens: mean 1/12, variance with n-1 (.75 - 6/144) / 5
    scale = math.sqrt((0.75 - 6 / 144) / 5 + 1e-8)
    found = reinforce_pp_baseline(rewards, mask, ids)
    expected = tensor([[5 / 12, 5 / 12], [-7 / 12, 0], [0, 0], [0, 0]]) / scale
    assert_close(found, expected)


def test_where_every_group_differs_the_baseline_form_is_the_plain_formula():
    generator = torch.Generator().manual_seed(1)
    rewards, mask = torch.randn(6, generator=generator), torch.rand(6, 5, generator=generator) > 0.4
    ids = tensor([1, 2, 1, 2, 1, 2])
    values = centred(rewards, ids)[:, None].expand(6, 5)[mask]
    expected = (values - values.mean()) / (values.var() + 1e-8).sqrt()
    assert_close(reinforce_pp_baseline(rewards, mask, ids)[mask], expected)


@pytest.mark.parametrize("mask", [torch.zeros(2, 3, dtype=torch.bool), tensor([[True, False, False], [False] * 3])])
def test_fewer_than_two_tokens_get_nothing(mask):
    assert (reinforce_pp(torch.randn(2, 3), mask) == 0).all()
    assert (reinforce_pp_baseline(tensor([1.0, 0]), mask, tensor([0, 0])) == 0).all()


def test_the_moving_mean_of_past_batches():
    part = Reinforce(decay=0.75)
    credit, state = part.apply(part.init(), tensor([1.0, 0.0]))
    assert credit.tolist() == [1, 0]  # no past
    credit, state = part.apply(state, tensor([1.0, 1.0]))
    assert credit.tolist() == [0.5, 0.5]
    credit, state = part.apply(json.loads(json.dumps(state)), tensor([0.0]))
    assert_close(credit, tensor([-0.625]))  # .75 · .5 + .25 · 1
    credit, after = part.apply(state, tensor([]))
    assert len(credit) == 0 and after == state == {"mean": pytest.approx(0.46875)}


def test_remax_is_against_the_greedy_answer():
    assert remax(tensor([1.0, 0, 0.5]), tensor([0.5, 0.5, 0.5])).tolist() == [0.5, -0.5, 0]


def test_bnpo_on_three_groups():
    rates = tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    mean, variance = 0.5, 0.0625
    strength = mean * (1 - mean) / variance - 1
    assert (strength * mean, strength * (1 - mean)) == (1.5, 1.5)  # a, b
    assert normaliser(rates) == (1.5, 1.5)
    expected = [0.680175, -0.226725, -0.226725, -0.226725, 0.392699, 0.392699, -0.392699, -0.392699]
    expected += [0.226725, 0.226725, 0.226725, -0.680175]
    assert_close(bnpo(ONES, NO_PARTS, IDS), tensor(expected), rtol=2e-6, atol=1e-6)


def test_bnpo_takes_several_rewards_apart():
    expected = [0.413138, -0.0403119, -0.332514, -0.0403119, 0.19635, 0.19635, -0.19635, -0.19635]
    expected += [-0.105789, 0.186413, 0.186413, -0.267037]
    found = bnpo(ONES, torch.stack([ONES, OTHER], 1), IDS, decompose=True)
    assert_close(found, tensor(expected), rtol=2e-6, atol=1e-6)


def slow_bnpo(groups):
    """Steps 2 to 5 of the method for groups of shares, the density by its integral over a grid."""
    rates = [sum(g) / len(g) for g in groups]
    mean = sum(rates) / len(rates)
    variance = sum((p - mean) ** 2 for p in rates) / (len(rates) - 1)
    strength = mean * (1 - mean) / variance - 1
    alpha, beta = max(1, 1 + strength * mean / 3), max(1, 1 + strength * (1 - mean) / 3)
    grid = [(i + 0.5) / 20000 for i in range(20000)]
    area = sum(x ** (alpha - 1) * (1 - x) ** (beta - 1) for x in grid) / len(grid)
    found = []
    for p, shares in zip(rates, groups, strict=True):
        density = p ** (alpha - 1) * (1 - p) ** (beta - 1) / area
        found += [(s - p) * min(1 / density, 1e6) for s in shares]
    return found


def test_bnpo_against_a_slow_loop():
    generator = torch.Generator().manual_seed(2)
    groups = [torch.rand(n, generator=generator, dtype=torch.float64).tolist() for n in (3, 5, 2, 4)]
    ids = tensor([i for i, g in enumerate(groups) for _ in g])
    shares = tensor([s for g in groups for s in g], dtype=torch.float64)
    order = torch.randperm(len(ids), generator=generator)
    found = bnpo(shares[order], torch.zeros(len(ids), 1), ids[order])
    assert_close(found, tensor(slow_bnpo(groups), dtype=torch.float64)[order], rtol=1e-4, atol=1e-5)


def test_bnpo_scales_rewards_to_shares():
    assert_close(bnpo(4 * ONES - 1, NO_PARTS, IDS, low=-1.0, high=3.0), bnpo(ONES, NO_PARTS, IDS))
    assert_close(bnpo(3 * ONES - 1, NO_PARTS, IDS), bnpo(ONES, NO_PARTS, IDS))  # beyond the range: its ends


def test_bnpo_of_one_prompt_is_plain_centring():
    assert_close(bnpo(ONES[:4], NO_PARTS[:4], IDS[:4]), centred(ONES[:4], IDS[:4]))


@pytest.mark.parametrize(
    "rates",
    [[0.5, 0.5, 0.5], [0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.3]],
    ids=["no variance", "all wrong", "all right", "more variance than a Beta law has", "one"],
)
def test_a_degenerate_fit_is_uniform(rates):
    assert normaliser(tensor(rates, dtype=torch.float64)) == (1.0, 1.0)


def test_at_three_halves_bnpo_is_grpo_up_to_a_constant():
    # f(p; 3/2, 3/2) = 8/pi sqrt(p (1 - p)), and sqrt(p (1 - p)) is the population's deviation of 0 and 1
    found, grpo = bnpo(ONES, NO_PARTS, IDS), standardised(ONES, IDS, eps=0.0)
    assert_close(found, grpo * math.pi / 8 / math.sqrt(3 / 4))


def test_groups_all_right_or_all_wrong_get_nothing_though_their_weight_is_largest():
    rewards = tensor([1.0, 1, 0, 0, 1, 0])
    found = bnpo(rewards, torch.zeros(6, 1), tensor([0, 0, 1, 1, 2, 2]))
    assert (found[:4] == 0).all() and found.isfinite().all()


def test_a_column_that_does_not_apply_adds_nothing():
    parts = torch.stack([ONES, torch.full((12,), float("nan"))], 1)
    assert_close(bnpo(ONES, parts, IDS, decompose=True), bnpo(ONES, NO_PARTS, IDS) / 2)


def estimates(part, trials: int, generator: torch.Generator) -> tuple[float, float]:
    """(mean, variance) of the gradient in the logit of a coin, from `trials` batches of 4 prompts x 4 answers.

    A heads earns 1 and has probability 0.3; the gradient of a row is A (heads - 0.3).
    """
    ids = torch.arange(4).repeat_interleave(4)
    found = []
    for _ in range(trials):
        heads = (torch.rand(16, generator=generator) < 0.3).float()
        found.append(float((part(heads, ids) * (heads - 0.3)).mean()))
    values = tensor(found)
    return float(values.mean()), float(values.var())


def test_leaving_one_out_lowers_the_variance_and_leaves_the_mean():
    generator = torch.Generator().manual_seed(4)
    plain = estimates(lambda r, ids: r, 4000, generator)
    rloo = estimates(leave_one_out, 4000, generator)
    grpo = estimates(standardised, 4000, generator)
    exact = 0.3 * 0.7
    assert plain[0] == pytest.approx(exact, abs=0.01) and rloo[0] == pytest.approx(exact, abs=0.01)
    assert rloo[1] < 0.75 * plain[1]
    assert abs(grpo[0] - exact) > 0.05  # dividing by the deviation is another objective
