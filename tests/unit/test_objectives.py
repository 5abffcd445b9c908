import math

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from llmrl.objectives.likelihood import likelihood
from llmrl.objectives.policy import clipped_surrogate
from llmrl.objectives.preference import dpo
from llmrl.objectives.value import value
from llmrl.ops.reduce import reduce_tokens, row_coefficients

PLAIN = [[0, -0.0909701, -0.116808], [0.100537, 0, 0], [0, -0.0584039, -0.0411566], [0.0915956, 0, 0]]


def token_mean(loss, given):
    mask = given["loss_mask"]
    return reduce_tokens(loss.values, mask, row_coefficients("token_mean", mask.sum(1), given["group_ids"], 3))


def surrogate(given, **options):
    """(token mean, gradient) of the surrogate on the worked input."""
    loss = clipped_surrogate(given["logprobs"], given["old_logprobs"], given["advantages"], **options)
    total = token_mean(loss, given)
    total.backward()
    return total.detach(), given["logprobs"].grad


def changed(row: int, column: int, number: float):
    gradient = [list(r) for r in PLAIN]
    gradient[row][column] = number
    return gradient


@pytest.mark.parametrize(
    "options, total, gradient",
    [
        ({}, -0.226316, PLAIN),
        ({"clip_high": 0.28}, -0.233139, changed(0, 0, -0.135711)),  # ratio 1.2214 is now inside
        ({"dual_clip": 1.5}, -0.234579, changed(3, 0, 0.0)),  # ratio 1.6487 with A < 0 is past 1.5
    ],
)
def test_surrogate_and_its_gradient_on_the_worked_input(worked, options, total, gradient):
    found = surrogate(worked, **options)
    assert_close(found[0], tensor(total), rtol=1e-5, atol=1e-6)
    assert_close(found[1], tensor(gradient), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "ratio, advantage, loss, slope",
    [
        # loss = max(-A r, -A clip(r)); its slope in the log-probability is -A r inside and 0 where the clip holds
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 2.0, -2.4, 0.0),
        (0.5, 2.0, -1.0, -1.0),
        (0.9, -2.0, 1.8, 1.8),
        (0.5, -2.0, 1.6, 0.0),
        (1.5, -2.0, 3.0, 3.0),
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_each_branch_of_the_clip(ratio, advantage, loss, slope):
    logprobs = tensor([[math.log(ratio) - 1.0]], requires_grad=True)
    found = clipped_surrogate(logprobs, tensor([[-1.0]]), tensor([[advantage]]))
    found.values.sum().backward()
    assert_close(found.values.detach(), tensor([[loss]]))
    assert_close(logprobs.grad, tensor([[slope]]))
    assert found.stats["ratio/clip_fraction"].item() == (slope == 0 and advantage != 0)


def test_a_dual_clip_touches_negative_credit_only():
    logprobs, old = tensor([[2.0, 2.0]]), tensor([[0.0, 0.0]])  # ratio 7.39
    found = clipped_surrogate(logprobs, old, tensor([[-1.0, 1.0]]), dual_clip=3.0)
    assert_close(found.values, tensor([[3.0, -1.2]]))


def test_on_policy_the_gradient_is_reinforce(worked):
    given = worked | {"old_logprobs": worked["logprobs"].detach()}
    _, gradient = surrogate(given)
    assert_close(gradient, -worked["advantages"] * worked["loss_mask"] / 9)


@pytest.mark.parametrize("clip, expected", [(0.2, 0.4825), (None, 0.4225)])
def test_value_loss(clip, expected):
    # ½ mean of max((.5-1)², (.3-1)²) = .49 and 1.2² = 1.44; without the clip .25 and 1.44
    loss = value(tensor([[0.5, 1.2]]), tensor([[0.1, 1.0]]), tensor([[1.0, 0.0]]), value_clip=clip)
    assert_close(loss.values.mean(), tensor(expected))


def test_value_clip_stops_the_gradient_beyond_the_range_only():
    values = tensor([[0.5, 1.5, 0.15]], requires_grad=True)
    loss = value(values, tensor([[0.1, 1.0, 0.1]]), tensor([[1.0, 0.0, 1.0]]), value_coef=2.0)
    loss.values.sum().backward()
    # past the range towards the return: none; past it away from the return, and inside: 2 (V - R)
    assert_close(values.grad, tensor([[0.0, 3.0, -1.7]]))


def test_likelihood_is_the_surprise():
    assert_close(likelihood(tensor([[-0.5, -2.0]])).values, tensor([[0.5, 2.0]]))


def test_preference_loss_and_gradient():
    chosen = tensor([-4.0, -6.0], requires_grad=True)
    rejected = tensor([-5.0, -5.5], requires_grad=True)
    loss = dpo(chosen, rejected, tensor([-4.5, -5.8]), tensor([-4.8, -5.9]), beta=0.1)
    loss.values.sum().backward()
    # h = 0.7, -0.6; slope -beta sigmoid(-beta h)
    assert loss.unit == "pair"
    assert_close(loss.values.detach(), tensor([0.658760, 0.723597]), rtol=1e-5, atol=1e-6)
    assert_close(chosen.grad, tensor([-0.0482507, -0.0514996]), rtol=1e-5, atol=1e-6)
    assert_close(rejected.grad, tensor([0.0482507, 0.0514996]), rtol=1e-5, atol=1e-6)
    assert loss.stats["pairs/accuracy"].tolist() == [1.0, 0.0]
    assert_close(loss.stats["pairs/margin"], tensor([0.07, -0.06]))


def test_preference_loss_is_ln_2_at_the_reference_and_finite_far_from_it():
    at = tensor([-4.0, -900.0])
    assert_close(dpo(at, at - 3, at, at - 3).values, torch.full((2,), math.log(2)))
    far = dpo(tensor([-9000.0]), tensor([0.0]), tensor([0.0]), tensor([-9000.0]))
    assert_close(far.values, tensor([1800.0]))
