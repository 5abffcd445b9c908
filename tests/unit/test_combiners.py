import torch
from torch import tensor
from torch.testing import assert_close

from llmrl.combiners.first_that_applies import first_that_applies
from llmrl.combiners.gated import gated
from llmrl.combiners.kl_in_reward import kl_in_reward
from llmrl.combiners.product import product
from llmrl.combiners.weighted_sum import weighted_sum

NAN = float("nan")


def test_weighted_sum():
    parts = tensor([[1.0, 0.5], [0.0, -1.0]])
    assert_close(weighted_sum(parts, tensor([1.0, 0.2])), tensor([1.1, -0.2]))


def test_a_part_that_does_not_apply_adds_nothing():
    parts = tensor([[float("nan"), 0.5], [1.0, float("nan")]])
    assert_close(weighted_sum(parts, tensor([1.0, 0.2])), tensor([0.1, 1.0]))


def test_the_penalty_lies_on_every_token_and_the_reward_on_the_last(worked):
    here, other, mask = worked["logprobs"].detach(), worked["ref_logprobs"], worked["loss_mask"]
    found = kl_in_reward(worked["rewards"], here, other, mask, kl_coef=0.05)
    # first row: d = .3, -.3, .1 -> -.015, .015, 1 - .005
    assert_close(found[0], tensor([-0.015, 0.015, 0.995]))
    assert_close(found.sum(1), tensor([0.995, 0.035, 0.985, -0.015]))
    assert (found[~mask] == 0).all()


def test_the_last_token_is_the_last_one_that_counts():
    mask = tensor([[True, False, True, False], [False, False, False, False]])
    zeros = torch.full((2, 4), float("nan")).masked_fill(mask, 0.0)
    found = kl_in_reward(tensor([2.0, 3.0]), zeros, zeros, mask)
    assert_close(found, tensor([[0.0, 0, 2, 0], [0, 0, 0, 0]]))


def test_product():
    parts = tensor([[0.5, 0.5], [1.0, 0.0], [NAN, 0.25], [NAN, NAN]])
    assert_close(product(parts, tensor([1.0, 2.0])), tensor([0.5, 0.0, 0.5, 0.0]))


def test_the_gate_is_the_first_part():
    parts = tensor([[1.0, 0.3], [0.0, 1.0], [NAN, 1.0], [0.5, NAN]])
    weights = tensor([0.0, 2.0])
    assert_close(gated(parts, weights), tensor([0.6, 0.0, 0.0, 0.0]))
    assert_close(gated(parts, tensor([1.0, 2.0]), threshold=0.6, closed=-1.0), tensor([1.6, -1.0, -1.0, -1.0]))


def test_the_first_part_that_applies_is_the_reward():
    parts = tensor([[0.5, 9.0], [NAN, 0.25], [0.0, 1.0], [NAN, NAN]])
    assert_close(first_that_applies(parts, tensor([1.0, 2.0])), tensor([0.5, 0.5, 0.0, 0.0]))
