"""Rewards from scores, lengths, repetition and the distance to a reference: worked numbers and degenerate inputs."""

import json
import math

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from llmrl.combiners.effective_reward import effective_reward
from llmrl.combiners.gdpo import gdpo
from llmrl.combiners.kl_in_reward import kl_in_reward
from llmrl.combiners.length import cosine_length, kimi_length, l1_length, overlong_penalty
from llmrl.combiners.ppo_max import PpoMaxNormalisation
from llmrl.combiners.repetition import repetition_penalty
from llmrl.combiners.weighted_sum import weighted_sum
from llmrl.composition import build
from llmrl.errors import RecipeError
from llmrl.ops import kl

NAN = float("nan")


def test_overlong_answers():
    found = overlong_penalty(torch.ones(4), tensor([80, 85, 100, 120]), max_tokens=100, buffer=20)
    assert_close(found - 1, tensor([0, -0.25, -1, -1]))


def test_the_length_reward_of_a_group():
    rewards, lengths = tensor([1.0, 0, 1, 0]), tensor([10, 20, 30, 40])
    found = kimi_length(rewards, lengths, torch.zeros(4).long()) - rewards
    assert_close(found, tensor([0.5, 0, -1 / 6, -0.5]))
    half = kimi_length(rewards, lengths, torch.zeros(4).long(), length_coef=0.5) - rewards
    assert_close(half, found / 2)


def test_equal_lengths_and_other_groups_say_nothing():
    rewards, lengths = tensor([1.0, 1, 0, 1]), tensor([7, 3, 7, 9])
    assert_close(kimi_length(rewards, lengths, tensor([0, 1, 0, 1])) - rewards, tensor([0, 0.5, 0, -0.5]))


def test_a_target_length():
    found = l1_length(torch.ones(3), tensor([90, 100, 130]), target=100, length_coef=0.01)
    assert_close(found, tensor([0.9, 1.0, 0.7]))


def test_the_cosine_reward():
    # halfway the wave is at the mean of its ends
    rewards, lengths = tensor([1.0, 1, 0, 0, 1, 1]), tensor([0, 50, 0, 50, 100, 10])
    cut = tensor([False, False, False, False, False, True])
    found = cosine_length(rewards, lengths, cut, max_tokens=100)
    assert_close(found, tensor([2.0, 1.5, -10, -5, -10, -10]))


def test_repeated_n_grams_of_the_counted_tokens():
    tokens = tensor([[1, 2, 1, 2, 1], [1, 2, 9, 1, 2], [5, 5, 5, 5, 5], [5, 5, 5, 5, 5]])
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[1, 2], mask[2, 1:], mask[3] = False, False, False
    # 12 21 12 21: two of four; 12 21 12 without the hole: two of three; one token and none: no pair
    found = repetition_penalty(torch.ones(4), tokens, mask, n=2)
    assert_close(found, tensor([0.5, 2 / 3, 1.0, 1.0]))


def test_options_of_the_repetition_penalty_are_checked():
    for options in ({"n": 0}, {"penalty": 1.0}):
        with pytest.raises(RecipeError, match="algorithm.combine"):
            build({"name": "grpo", "combine": ["weighted_sum", {"name": "repetition_penalty"} | options]})


def test_weights_of_a_domain():
    parts = tensor([[1.0, 0.2], [1.0, 0.2], [NAN, 1.0]])
    table = [[0.9, 0.1], [0.5, 2.0]]
    found = effective_reward(parts, tensor([1.0, 1.0]), tensor([0, 1, 1]), domain_weights=table)
    assert_close(found, tensor([0.92, 0.9, 2.0]))
    doubled = effective_reward(parts, tensor([2.0, 2.0]), tensor([0, 1, 1]), domain_weights=table)
    assert_close(doubled, 2 * found)


def test_without_a_table_every_domain_is_the_weighted_sum():
    parts, weights = tensor([[1.0, 0.5], [NAN, 2.0]]), tensor([1.0, 0.2])
    assert_close(effective_reward(parts, weights, tensor([0, 3])), weighted_sum(parts, weights))


@pytest.mark.parametrize("table", [[[1.0, 1.0]], [[1.0], [1.0]], []])
def test_a_domain_without_weights_is_an_error(table):
    with pytest.raises(ValueError, match="a row for each of 2 domains and 2 factors"):
        effective_reward(torch.ones(2, 2), torch.ones(2), tensor([0, 1]), domain_weights=table)


def test_scores_are_normalised_before_they_are_summed():
    parts = tensor([[1.0, 100.0], [0, 0], [0, 0], [0, 0]])
    found = gdpo(parts, tensor([1.0, 0.5]), torch.zeros(4).long(), eps=0.0)
    assert_close(found, 1.5 * tensor([1.5, -0.5, -0.5, -0.5]))
    assert (gdpo(torch.ones(4, 2), torch.ones(2), torch.zeros(4).long()) == 0).all()


def test_moments_of_all_rewards_so_far():
    part = PpoMaxNormalisation(reward_clip=0.3)
    found, state = part.apply(part.init(), tensor([2.0, -1.0]))
    assert_close(found, tensor([0.3, -0.3]))
    assert state == {"mean": 0.5, "variance": 2.25, "count": 2}


def test_ppo_max_s_rewards_of_tokens():
    scores, _ = PpoMaxNormalisation(reward_clip=0.3).apply(PpoMaxNormalisation().init(), tensor([2.0, -1.0]))
    old, ref = tensor([[-0.5, -1.0], [-0.3, 0]]), tensor([[-0.6, -0.8], [-0.3, 0]])
    mask = tensor([[True, True], [True, False]])
    found = kl_in_reward(scores, old, ref, mask, kl_coef=0.05)
    assert_close(found, tensor([[-0.005, 0.31], [-0.3, 0]]))


@pytest.mark.parametrize("options", [{}, {"reward_clip": None}, {"reward_clip": None, "centred": False}])
def test_batch_by_batch_is_all_at_once(options):
    part = PpoMaxNormalisation(**options)
    generator = torch.Generator().manual_seed(0)
    seen, state = torch.zeros(0), part.init()
    for size in (1, 4, 3, 6):
        rewards = 5 + 3 * torch.randn(size, generator=generator)
        seen = torch.cat([seen, rewards])
        found, state = part.apply(json.loads(json.dumps(state)), rewards)
        std = seen.std() if len(seen) > 1 else 1.0
        expected = (rewards - seen.mean() if part.centred else rewards) / std
        if part.reward_clip is not None:
            expected = expected.clamp(-0.3, 0.3)
        assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert state["count"] == 14


def test_rewards_that_do_not_differ_are_not_blown_up():
    part = PpoMaxNormalisation(reward_clip=None)
    found, state = part.apply(part.init(), torch.full((4,), 0.9))
    assert_close(found, torch.zeros(4), rtol=0, atol=1e-6)
    found, after = part.apply(state, tensor([]))
    assert len(found) == 0 and after == state
    assert_close(
        PpoMaxNormalisation(reward_clip=None, centred=False).apply(part.init(), tensor([7.0]))[0], tensor([7.0])
    )


def test_the_scale_of_the_rewards_does_not_matter_to_ppo_max():
    rewards = tensor([0.2, 0.9, 0.4])
    part = PpoMaxNormalisation(reward_clip=10.0)
    one, hundred = (part.apply(part.init(), scale * rewards)[0] for scale in (1, 100))
    assert_close(one, hundred)


def test_the_cost_of_a_whole_answer(worked):
    old, ref, mask = worked["logprobs"].detach(), worked["ref_logprobs"], worked["loss_mask"]
    found = kl_in_reward(worked["rewards"], old, ref, mask, kl_coef=0.05, per_token=False)
    assert_close(found, tensor([0.995, 0.035, 0.985, -0.015]))
    whole = kl_in_reward(worked["rewards"], old, ref, mask, kl_coef=0.05)
    assert_close(found, whole.sum(1))


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_other_estimators_of_the_cost(worked, name):
    old, ref, mask = worked["logprobs"].detach(), worked["ref_logprobs"], worked["loss_mask"]
    found = kl_in_reward(torch.zeros(4), old, ref, mask, kl_coef=1.0, estimator=name)
    assert_close(found[mask], -getattr(kl, name)(old, ref)[mask])
    total = {"k1": 0.0, "k2": 0.0411111, "k3": 0.0430454}[name]  # means over the nine tokens, worked out by hand
    assert_close(found.sum() / 9, tensor(-total), rtol=1e-5, atol=1e-6)


def test_what_stands_under_the_mask_has_no_cost():
    mask = tensor([[True, False]])
    old, ref = tensor([[-1.0, NAN]]), tensor([[-1.5, math.inf]])
    for name in ("k1", "k2", "k3"):
        assert kl_in_reward(torch.ones(1), old, ref, mask, estimator=name, per_token=False).isfinite().all()


def gradient(estimator: str) -> torch.Tensor:
    """Exact expected policy gradient in the logits of five tokens whose only reward is the cost."""
    logits = tensor([0.3, -1.2, 0.8, 0.0, 1.7], dtype=torch.float64, requires_grad=True)
    ref = tensor([1.1, 0.4, -0.6, 0.2, 0.0], dtype=torch.float64).log_softmax(0)
    policy = logits.log_softmax(0)
    everywhere = torch.ones(5, 1, dtype=torch.bool)
    old = policy.detach()[:, None]
    rewards = kl_in_reward(
        torch.zeros(5, dtype=torch.float64), old, ref[:, None], everywhere, kl_coef=1.0, estimator=estimator
    )
    (-(policy.detach().exp() * rewards[:, 0] * policy).sum()).backward()
    return logits.grad


def test_k1_alone_has_the_gradient_of_the_divergence():
    logits = tensor([0.3, -1.2, 0.8, 0.0, 1.7], dtype=torch.float64, requires_grad=True)
    ref = tensor([1.1, 0.4, -0.6, 0.2, 0.0], dtype=torch.float64).log_softmax(0)
    policy = logits.log_softmax(0)
    (policy.exp() * (policy - ref)).sum().backward()
    assert_close(gradient("k1"), logits.grad)
    for name in ("k2", "k3"):
        assert (gradient(name) - logits.grad).norm() > 0.1
