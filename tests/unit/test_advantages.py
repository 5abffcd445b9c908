import torch
from torch import tensor
from torch.testing import assert_close

from llmrl.advantages.gae import gae
from llmrl.advantages.group import standardised

REWARDS = tensor([[0, 0, 1, 0], [0, 0.5, 0, 0]])
VALUES = tensor([[0.2, 0.4, 0.6, 9.0], [0.1, 0.3, 9.0, 9.0]])
MASK = tensor([[True, True, True, False], [True, True, False, False]])


def test_standardised_within_the_group():
    # mean 1/4, std with n-1 exactly 1/2; eps 1e-6 shows in the sixth digit
    assert_close(
        standardised(tensor([1.0, 0, 0, 0]), torch.zeros(4).long()),
        tensor([1.499997, -0.499999, -0.499999, -0.499999]),
        rtol=1e-6,
        atol=0,
    )


def test_groups_do_not_see_each_other():
    rewards, ids = tensor([1.0, 5, 0, 7, 0, 9, 0]), tensor([2, 8, 2, 8, 2, 8, 2])
    assert_close(standardised(rewards, ids)[[0, 2, 4, 6]], tensor([1.499997, -0.499999, -0.499999, -0.499999]))
    assert_close(standardised(rewards, ids)[[1, 3, 5]], tensor([-1.0, 0, 1]))


def test_residues_of_rounding_are_not_credit():
    # in fp32 (0.9 + 0.9 + 0.9) / 3 is not 0.9
    for size in range(1, 12):
        assert (standardised(torch.full((size,), 0.9), torch.zeros(size).long()) == 0).all()


def test_a_smallest_spread_is_not_blown_up_beyond_eps():
    # a step of 1e-7 over eps 1e-6; without eps it would be 0.7
    rewards = torch.stack([tensor(1.0), torch.nextafter(tensor(1.0), tensor(2.0))])
    assert standardised(rewards, torch.zeros(2).long()).abs().max() < 0.2


def test_generalised_advantages_and_returns():
    out = gae(REWARDS, VALUES, MASK, gamma=1.0, gae_lambda=0.9, whiten=False)
    assert_close(out.advantages, tensor([[0.704, 0.56, 0.4, 0], [0.38, 0.2, 0, 0]]))
    assert_close(out.returns, tensor([[0.904, 0.96, 1, 0], [0.48, 0.5, 0, 0]]))


def test_whitening_changes_advantages_and_not_returns():
    out = gae(REWARDS, VALUES, MASK, gamma=1.0, gae_lambda=0.9)
    expected = tensor([[1.33346, 0.581036, -0.254987, 0], [-0.35949, -1.30002, 0, 0]])
    assert_close(out.advantages, expected, rtol=1e-5, atol=1e-5)
    assert_close(out.returns, tensor([[0.904, 0.96, 1, 0], [0.48, 0.5, 0, 0]]))


def test_a_short_episode():
    # backwards: 1 - .5 = .5;  .5 - .4 + .95·.5 = .575;  .4 - .2 + .95·.575 = .74625
    out = gae(tensor([[0.0, 0, 1]]), tensor([[0.2, 0.4, 0.5]]), torch.ones(1, 3, dtype=torch.bool), whiten=False)
    assert_close(out.advantages, tensor([[0.74625, 0.575, 0.5]]))


def test_tool_tokens_are_bridged():
    plain = gae(tensor([[0.0, 0, 1]]), tensor([[0.2, 0.4, 0.5]]), torch.ones(1, 3, dtype=torch.bool), whiten=False)
    holes = tensor([[True, False, False, True, True]])
    nan = float("nan")
    out = gae(tensor([[0.0, nan, 5.0, 0, 1]]), tensor([[0.2, nan, 7.0, 0.4, 0.5]]), holes, whiten=False)
    assert_close(out.advantages[holes], plain.advantages.flatten())
    assert_close(out.returns[holes], plain.returns.flatten())
    assert (out.advantages[~holes] == 0).all() and (out.returns[~holes] == 0).all()
