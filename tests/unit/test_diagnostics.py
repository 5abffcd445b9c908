"""Numbers that say how a run is doing."""

import math

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from llmrl.advantages.group import standardised
from llmrl.diagnostics.covariance import covariance, entropy_change
from llmrl.diagnostics.effective_sample_size import effective_sample_size
from llmrl.diagnostics.entropy_law import entropy_law
from llmrl.diagnostics.policy_cliff import policy_cliff, shift

NAN = float("nan")


def test_covariance_over_tokens():
    credit = tensor([[2.0, 2, 2, NAN], [-1, -1, NAN, NAN]])
    logprobs = tensor([[0.9, 0.5, 0.1, NAN], [0.8, 0.2, NAN, NAN]]).log()
    found = covariance(credit, logprobs, credit.isfinite())
    # by token 1.05765, .352305, -1.57902, -1.37446, 1.12087
    assert found["entropy/covariance"] == pytest.approx(
        (1.05765 + 0.352305 - 1.57902 - 1.37446 + 1.12087) / 5, abs=1e-5
    )
    assert found["entropy/covariance_max"] == pytest.approx(1.12087, abs=1e-5)
    assert set(covariance(credit, logprobs, torch.zeros(2, 4).bool()).values()) == {0.0}


def test_entropy_change_of_one_step():
    z = tensor([1.0, 0, -1], dtype=torch.double)
    natural = entropy_change(z, z, step_size=0.1, gradient="natural")
    plain = entropy_change(z, z, step_size=0.1)
    assert natural.item() == pytest.approx(-0.0424405, abs=1e-7)
    assert plain.item() == pytest.approx(-0.0200757, abs=1e-7)

    def entropy(logits):
        return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)

    step = 1e-6 * z
    for found, moved in [("natural", step), ("policy", step * z.softmax(-1))]:
        exact = (entropy(z + moved) - entropy(z)) / 1e-6
        assert_close(entropy_change(z, z, step_size=1.0, gradient=found), exact, rtol=1e-5, atol=0)


def test_the_law_of_entropy():
    found = entropy_law([1, 0.5, 0.2, 0.1], [0.30, 0.45, 0.52, 0.55])
    expected = {"a": 0.151395, "b": 0.708343, "ceiling": 0.556948, "r2": 0.995207}
    assert found == pytest.approx(expected, abs=1e-6)


def test_the_law_finds_what_follows_it():
    entropies = [0.05, 0.3, 0.8, 1.2]
    found = entropy_law(entropies, [0.7 - 0.2 * math.exp(h) for h in entropies])
    assert found == pytest.approx({"a": 0.2, "b": 0.7, "ceiling": 0.5, "r2": 1.0})
    assert entropy_law([0.1, 0.2], [0.5, 0.5]) == pytest.approx({"a": 0, "b": 0.5, "ceiling": 0.5, "r2": 1.0})
    with pytest.raises(ValueError, match="1 different entropies"):
        entropy_law([0.1, 0.1], [0.5, 0.6])


PARTS = tensor([[1, 0.2], [0.98, 0.4], [0.3, 1]], dtype=torch.double)


def weights(*numbers):
    return tensor(numbers, dtype=torch.double)


@pytest.mark.parametrize(
    "before, after, gap, tv, sup, bound, sensitivity",
    [
        ((0.9, 0.1), (0.95, 0.05), 0.002, 0.0279575, 0.04, 0.2, 0.698938),
        ((0.92, 0.08), (0.9, 0.1), 0.0024, 0.0112249, 0.016, 0.08, 0.701557),
    ],
)
def test_a_shift_of_the_weights(before, after, gap, tv, sup, bound, sensitivity):
    found = shift(PARTS, weights(*before), weights(*after), torch.arange(3), temperature=0.1)
    assert found.flip
    assert found[0] == pytest.approx(gap, abs=1e-9)
    assert found[2:] == pytest.approx((tv, sup, bound), abs=1e-6)
    assert found.sensitivity == pytest.approx(sensitivity, abs=1e-5)


def test_ties_make_the_best_answer_jump_and_the_soft_policy_walk():
    found = shift(tensor([[1.0, 0], [0, 1]]), weights(1, 1.0), weights(1, 1.001), torch.arange(2), temperature=0.5)
    assert found.gap == 0 and found.flip and found.tv <= 1e-3
    same = shift(PARTS, weights(1, 1), weights(1, 1), torch.arange(3), temperature=0.1)
    assert not same.flip and same.tv == same.sup == same.sensitivity == 0


def test_copies_of_an_answer_are_no_tie():
    parts = torch.cat([PARTS[:1], PARTS])
    found = shift(parts, weights(0.9, 0.1), weights(0.9, 0.1), tensor([4, 4, 5, 6]), temperature=0.1)
    assert found.gap == pytest.approx(0.002)


def test_the_cliff_over_prompts():
    parts = torch.cat([PARTS, tensor([[1.0, NAN], [0, 0]])]).float()
    said, ids = torch.arange(5), tensor([0, 0, 0, 1, 1])
    found = policy_cliff(parts, tensor([0.9, 0.1]), said, ids)
    assert found["cliff/tied"] == 0.5
    assert 0 < found["cliff/flips"] <= 0.5  # the clear prompt does not flip
    assert found["cliff/bound_excess"] <= 0 < found["cliff/tv"]
    assert policy_cliff(parts, tensor([0.9, 0.1]), torch.zeros(5), ids) == {}


def test_the_bound_holds_on_any_rewards():
    generator = torch.Generator().manual_seed(0)
    for seed in range(20):
        parts, said = torch.randn(12, 3, generator=generator), torch.arange(12)
        found = policy_cliff(parts, torch.ones(3), said, said % 3, temperature=0.02 * (seed + 1), seed=seed)
        assert found["cliff/bound_excess"] <= 0


def test_effective_sample_size():
    # token weights 1, 2, 1/2 -> (3.5)² / (3 · 5.25); rows 2 and 1/2 -> 2.5² / (2 · 4.25)
    rollout = tensor([[-1.0, -1.0, NAN], [-1.0, NAN, NAN], [NAN, NAN, NAN]])
    change = tensor([[0.0, math.log(2), NAN], [-math.log(2), NAN, NAN], [NAN, NAN, NAN]])
    found = effective_sample_size(rollout + change, rollout, rollout.isfinite())
    assert found["ratio/token_sample_size"] == pytest.approx(12.25 / 15.75, abs=1e-6)
    assert found["ratio/sequence_sample_size"] == pytest.approx(6.25 / 8.5, abs=1e-6)


def test_on_policy_every_sample_counts():
    logprobs = -torch.rand(4, 900, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(4, 900, dtype=torch.bool)
    assert set(effective_sample_size(logprobs, logprobs, mask).values()) == {1.0}
    assert set(effective_sample_size(logprobs, logprobs, ~mask).values()) == {1.0}
    shifted = logprobs.clone()
    shifted[0] += 15.0  # a sequence weight of exp(13500) is no overflow, it is all there is
    assert effective_sample_size(shifted, logprobs, mask)["ratio/sequence_sample_size"] == pytest.approx(0.25)


def test_covariance_is_positive_where_credit_goes_to_the_probable():
    logprobs = tensor([[-0.1], [-0.2], [-3.0], [-4.0]])
    credit = standardised(tensor([1.0, 1, 0, 0]), torch.zeros(4).long())[:, None]
    mask = torch.ones(4, 1, dtype=torch.bool)
    assert (
        covariance(credit, logprobs, mask)["entropy/covariance"]
        > 0
        > covariance(-credit, logprobs, mask)["entropy/covariance"]
    )
