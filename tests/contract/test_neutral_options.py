"""Options at their neutral value make a part its parent, as its paper says."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from inputs import assert_same, batch, differentiate

from llmrl.advantages.gae import gae
from llmrl.batch import Loss, call
from llmrl.combiners.kl_in_reward import kl_in_reward
from llmrl.composition import build
from llmrl.objectives.covariance import clip_cov, kl_cov
from llmrl.objectives.dppo import dppo, prime
from llmrl.objectives.hapo import hapo
from llmrl.objectives.likelihood import likelihood
from llmrl.objectives.policy import clipped_surrogate, two_sided_clip
from llmrl.objectives.preference import dpo
from llmrl.objectives.value import value
from llmrl.objectives.weighted import cispo_rollout
from llmrl.ops.masked import last_counted
from llmrl.plan import passes
from llmrl.regularizers.kl import kl_k3

WIDE = 1e6


def importance_weighted(logprobs, old_logprobs, advantages):
    return Loss(-(logprobs - old_logprobs).exp() * advantages)


def sampled_surrogate(logprobs, rollout_logprobs, advantages):
    return Loss(-(logprobs - rollout_logprobs).exp() * advantages)


def sampled_reinforce(logprobs, rollout_logprobs, advantages):
    return Loss(-(logprobs - rollout_logprobs).exp().detach() * advantages * logprobs)


def squared_error(values, returns):
    return Loss(0.5 * (values - returns) ** 2)


def nothing(logprobs):
    return Loss(0.0 * logprobs)


def no_preference(chosen_seq_logprobs):
    return Loss(0.0 * chosen_seq_logprobs + torch.tensor(2.0).log(), unit="pair")


NEUTRAL = {
    "no clip: the importance-weighted surrogate": (
        partial(clipped_surrogate, clip_low=WIDE, clip_high=WIDE),
        importance_weighted,
    ),
    "a dual clip beyond every ratio": (partial(clipped_surrogate, dual_clip=WIDE), clipped_surrogate),
    "no value clip: half the squared error": (partial(value, value_clip=None), squared_error),
    "a value clip beyond every step": (partial(value, value_clip=WIDE), squared_error),
    "no penalty": (partial(kl_k3, kl_coef=0.0), nothing),
    "beta 0 prefers neither side": (partial(dpo, beta=0.0), no_preference),
    "two-sided, beyond every ratio": (partial(two_sided_clip, delta=WIDE), clipped_surrogate),
    "Clip-Cov at PPO's clip": (partial(clip_cov, clip_low=0.2, clip_high=0.2), clipped_surrogate),
    "KL-Cov without its penalty": (partial(kl_cov, kl_coef=0.0), importance_weighted),
    "HAPO with one range for all": (partial(hapo, clip_scale=0.0, dual_clip=None), clipped_surrogate),
    "prime without region and penalty": (partial(prime, delta=WIDE, kl_coef=0.0), sampled_surrogate),
    "a weight that no bound touches": (partial(cispo_rollout, ratio_max=WIDE), sampled_reinforce),
    "DPPO without region": (partial(dppo, delta_low=WIDE, delta_high=WIDE, ratio_max=WIDE), sampled_reinforce),
}


@pytest.mark.parametrize("part, parent", NEUTRAL.values(), ids=NEUTRAL)
def test_neutral_options_make_the_parent(part, parent):
    assert_same(differentiate(part, batch()), differentiate(parent, batch()))


def test_on_policy_the_surrogate_has_the_gradient_of_likelihood_weighted_by_credit():
    given = batch()
    first = replace(given, arrays=given.arrays | {"old_logprobs": given.arrays["logprobs"]})

    def reinforce(logprobs, advantages):
        return Loss(advantages * likelihood(logprobs).values)

    torch.testing.assert_close(differentiate(clipped_surrogate, first)[1], differentiate(reinforce, first)[1])


def test_gae_with_lambda_one_is_what_is_still_to_come_less_the_value():
    given = batch()
    mask = given.arrays["loss_mask"]
    out = call(partial(gae, gamma=1.0, gae_lambda=1.0, whiten=False), given)
    for row in range(len(given)):
        for t in mask[row].nonzero().flatten().tolist():
            to_come = given.arrays["token_rewards"][row, t:][mask[row, t:]].sum()
            torch.testing.assert_close(out.returns[row, t], to_come)
            torch.testing.assert_close(out.advantages[row, t], to_come - given.arrays["old_values"][row, t])


def test_without_penalty_the_reward_stands_on_the_last_token():
    given = batch()
    expected = given.arrays["rewards"][:, None] * last_counted(given.arrays["loss_mask"])
    torch.testing.assert_close(call(partial(kl_in_reward, kl_coef=0.0), given), expected)


@pytest.mark.parametrize("config", [{"name": "grpo", "kl_coef": 0.0}, {"name": "ppo", "kl_coef": 0.0}])
def test_without_penalty_there_is_no_reference_pass(config):
    assert "ref" not in [p.name for p in passes(build(config))]
    assert "ref" in [p.name for p in passes(build(config | {"kl_coef": 0.04}))]
