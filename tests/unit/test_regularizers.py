"""Penalties against exact divergences: with five tokens every expectation is a sum that can be written out."""

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from llmrl.batch import Loss
from llmrl.combiners.kl_in_reward import kl_in_reward
from llmrl.objectives.policy import clipped_surrogate
from llmrl.ops import kl
from llmrl.ops.reduce import reduce_tokens, row_coefficients
from llmrl.regularizers.entropy import entropy_bonus
from llmrl.regularizers.kl import kl_k2, kl_k3

LOGITS = tensor([0.3, -1.2, 0.8, 0.0, 1.7], dtype=torch.float64)
REFERENCE = tensor([1.1, 0.4, -0.6, 0.2, 0.0], dtype=torch.float64).log_softmax(0)


def exact(direction):
    """(value, gradient in the logits) of KL(policy || reference) or of KL(reference || policy)."""
    logits = LOGITS.clone().requires_grad_()
    policy = logits.log_softmax(0)
    if direction == "reverse":
        divergence = (policy.exp() * (policy - REFERENCE)).sum()
    else:
        divergence = (REFERENCE.exp() * (REFERENCE - policy)).sum()
    divergence.backward()
    return divergence.detach(), logits.grad


def expected(per_token):
    """(value, gradient) of a loss per token, in expectation over tokens drawn from the policy and held fixed."""
    logits = LOGITS.clone().requires_grad_()
    policy = logits.log_softmax(0)
    chance = policy.detach().exp()
    total = (chance * per_token(policy[:, None]).squeeze(1)).sum()
    total.backward()
    return total.detach(), logits.grad


def loss_of(part):
    return lambda logprobs: part(logprobs, REFERENCE[:, None], kl_coef=1.0).values


def test_k3_in_the_loss_has_the_reverse_value_and_the_forward_gradient():
    number, gradient = expected(loss_of(kl_k3))
    assert_close(number, exact("reverse")[0])
    assert_close(gradient, exact("forward")[1])
    assert (gradient - exact("reverse")[1]).norm() > 0.1  # far from the reference the two are not the same


def test_k2_in_the_loss_has_the_reverse_gradient_and_a_biased_value():
    number, gradient = expected(loss_of(kl_k2))
    assert_close(gradient, exact("reverse")[1])
    assert (number - exact("reverse")[0]).abs() > 0.01


def test_k1_in_the_loss_has_the_right_value_and_no_gradient():
    number, gradient = expected(lambda logprobs: kl.k1(logprobs, REFERENCE[:, None]))
    assert_close(number, exact("reverse")[0])
    assert gradient.abs().max() < 1e-12


def test_k1_in_the_reward_has_the_reverse_gradient():
    everywhere = torch.ones(5, 1, dtype=torch.bool)

    def in_reward(logprobs):
        old = logprobs.detach()
        credit = kl_in_reward(torch.zeros(5), old, REFERENCE[:, None], everywhere, kl_coef=1.0)
        return clipped_surrogate(logprobs, old, credit).values

    number, gradient = expected(in_reward)
    assert_close(number, exact("reverse")[0])
    assert_close(gradient, exact("reverse")[1])


def test_k3_in_the_reward_would_have_neither_gradient():
    def in_reward(logprobs):
        credit = -kl.k3(logprobs, REFERENCE[:, None]).detach()
        return clipped_surrogate(logprobs, logprobs.detach(), credit).values

    _, gradient = expected(in_reward)
    assert_close(gradient, exact("reverse")[1] - exact("forward")[1])


@pytest.mark.parametrize("part, coefficient", [(kl_k2, lambda d: d), (kl_k3, lambda d: 1 - (-d).exp())])
def test_gradient_of_one_token(worked, part, coefficient):
    here, other = worked["logprobs"], worked["ref_logprobs"]
    part(here, other, kl_coef=0.5).values.sum().backward()
    assert_close(here.grad, 0.5 * coefficient((here - other).detach()))


@pytest.mark.parametrize("part, expected_mean", [(kl_k2, 0.0411111), (kl_k3, 0.0430454)])
def test_penalties_on_the_worked_input(worked, part, expected_mean):
    mask = worked["loss_mask"]
    loss = part(worked["logprobs"], worked["ref_logprobs"], kl_coef=1.0)
    total = reduce_tokens(loss.values, mask, row_coefficients("token_mean", mask.sum(1), worked["group_ids"], 3))
    assert_close(total.detach(), tensor(expected_mean), rtol=1e-5, atol=1e-6)


def test_entropy_is_rewarded():
    found = entropy_bonus(tensor([[2.0, 0.5]]), entropy_coef=0.1)
    assert isinstance(found, Loss)
    assert_close(found.values, tensor([[-0.2, -0.05]]))
