"""What happens to advantages after they are estimated."""

from types import SimpleNamespace

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from llmrl.advantages.group import standardised
from llmrl.shaping.adora import adora
from llmrl.shaping.aspo import aspo
from llmrl.shaping.empg import empg
from llmrl.shaping.entropy import entropy_advantage, top_entropy_mask

NAN = float("nan")


def near(found, expected):
    assert_close(found, tensor(expected), rtol=1e-5, atol=1e-6)


# EMPG

CREDIT = tensor([[1.0, 1, 1], [-1, -1, 0]])
ENTROPY = tensor([[0.2, 0.8, 0.5], [0.4, 1.0, NAN]])
STEPS = tensor([[0, 1, 2], [0, 1, -1]])
EXPECTED = [[1.22256, 0.44614, 0.702427], [-1.47788, -0.89325, 0]]


def test_empg():
    near(empg(CREDIT, ENTROPY, STEPS, STEPS >= 0), EXPECTED)


def test_a_step_counts_once_however_many_tokens_it_has():
    # the first step in three tokens with a hole, entropies .1, .2, .3; ids need not be without gaps
    credit = tensor([[1.0, 1, NAN, 1, 1, 1], [-1, -1, 0, 0, 0, 0]])
    entropy = tensor([[0.1, 0.3, NAN, 0.2, 0.8, 0.5], [0.4, 1.0, NAN, NAN, NAN, NAN]])
    steps = tensor([[0, 0, 0, 0, 3, 7], [2, 4, -1, -1, -1, -1]])
    mask = tensor([[1, 1, 0, 1, 1, 1], [1, 1, 0, 0, 0, 0]]).bool()
    found = empg(credit, entropy, steps, mask)
    near(found[mask], [1.22256, 1.22256, 1.22256, 0.44614, 0.702427, -1.47788, -0.89325])
    assert (found[~mask] == 0).all()


def test_a_step_without_tokens_of_the_policy_is_not_a_next_step():
    # tool output between the two steps of the second row
    between = tensor([[0, 1, 2, -1], [0, 1, 2, -1]])
    mask = tensor([[1, 1, 1, 0], [1, 0, 1, 0]]).bool()
    credit, entropy = torch.zeros(2, 4), torch.full((2, 4), NAN)
    credit[:, :3], entropy[0, :3], entropy[1, [0, 2]] = CREDIT[:, :1], ENTROPY[0], ENTROPY[1, :2]
    near(empg(credit, entropy, between, mask)[mask], sum(EXPECTED, [])[:5])


def test_empg_neutral_options_and_degenerate_batches():
    mask = STEPS >= 0
    near(empg(CREDIT, ENTROPY, STEPS, mask, sharpness=0.0, bonus_coef=0.0)[mask], [0.8, 0.8, 0.8, -1.2, -1.2])
    flat = torch.full((2, 3), 0.7)
    near(empg(CREDIT, flat, STEPS, mask, bonus_coef=0.0)[mask], [0.8, 0.8, 0.8, -1.2, -1.2])
    outside = empg(CREDIT, ENTROPY, torch.full_like(STEPS, -1), mask)
    assert_close(outside, CREDIT)
    assert (empg(CREDIT, ENTROPY, STEPS, torch.zeros_like(mask)) == 0).all()


def test_certain_steps_outweigh_uncertain_ones_by_the_exponential_of_their_distance():
    entropy = torch.linspace(0, 1, 8)[None]
    found = empg(
        torch.ones(1, 8), entropy, torch.arange(8)[None], torch.ones(1, 8).bool(), sharpness=2.0, bonus_coef=0.0
    )
    weight = found + 1  # of equal credit the mean is taken off again
    assert_close(weight[0, 0] / weight[0, 7], tensor(2.0).exp())
    assert_close(weight.mean(), tensor(1.0))


# ADORA

SUCCESS = tensor([1.0, 0, 0, 0, 1, 1, 1, 0])
GROUPS = tensor([0] * 4 + [1] * 4)
NONE_CUT = torch.zeros(8, dtype=torch.bool)


def weights(lengths, success=SUCCESS, truncated=NONE_CUT, **options):
    return adora(torch.ones(8, 2), success, tensor(lengths), truncated, GROUPS, **options)[:, 0]


def test_adora():
    near(weights([5, 9, 8, 7, 20, 18, 16, 6]), [0.1] * 4 + [1.0] * 4)
    near(weights([9, 5, 6, 7, 20, 18, 16, 6], mode="amplify"), [2.0] * 4 + [1.0] * 4)


def test_adora_at_its_corners():
    lengths = [5, 9, 8, 7, 20, 18, 16, 6]
    near(weights(lengths, success=torch.zeros(8)), [0.1] * 8)  # nothing right
    near(weights(lengths, success=torch.ones(8)), [1.0] * 8)  # nothing wrong
    cut = tensor([False, True, True, True] + [False] * 4)
    near(weights(lengths, truncated=cut), [1.0] * 8)  # every wrong one was cut
    near(weights(lengths, truncated=cut, mode="amplify"), [2.0] * 4 + [1.0] * 4)
    near(weights([8, 9, 8, 7, 20, 18, 16, 6]), [0.1] * 4 + [1.0] * 4)  # as long as the mean is not longer
    near(weights(lengths, attenuation=1.0), [1.0] * 8)
    near(weights([9, 5, 6, 7, 20, 18, 16, 6], success=SUCCESS * 0.5, mode="amplify"), [1.0] * 8)  # not above .5


# ASPO

REWARDS = tensor([1.0, 1, 1, 0, 0, 1])
CALLS = tensor([10, 40, -1, 5, -1, 25])
LENGTHS = tensor([100, 80, 60, 90, 50, 120])
MASK = torch.arange(120) < LENGTHS[:, None]
ONE = torch.zeros(6).long()


def nudged(credit, rewards=REWARDS, calls=CALLS, mask=MASK, ids=ONE, **options):
    wide = torch.where(mask, credit[:, None], NAN)
    found = aspo(wide, rewards, calls, mask, ids, **options)
    assert (found[~mask] == 0).all()
    return found[:, 0]


def test_aspo():
    credit = standardised(REWARDS, ONE)
    near(credit, [0.645496, 0.645496, 0.645496, -1.29099, -1.29099, 0.645496])
    near(nudged(credit), [0.945496, 0.345496, 0.645496, -1.29099, -1.29099, 0.645496])


def test_lengths_of_aspo_hold_tool_output():
    mask = MASK.clone()
    mask[:, 3:30] = False
    near(nudged(standardised(REWARDS, ONE), mask=mask)[:2], [0.945496, 0.345496])


def test_aspo_never_turns_a_sign_and_has_its_bound():
    credit = standardised(REWARDS, ONE)
    for delta in (-50.0, 50.0):
        found = nudged(credit, delta=delta)
        assert (found.sign() == credit.sign()).all()
    near(nudged(credit, delta=-50.0)[:2], [1.7 * 0.645496, 0.3 * 0.645496])
    graded = tensor([0.6, 1.0, 0, 0.9, 0, 0])  # the first is right and has negative credit
    found = nudged(tensor([-0.2, 0.5, -1, 0.4, -1, -1]), rewards=graded, delta=-50.0)
    near(found, [-0.2 + 0.14, 0.5 - 0.35, -1, 0.4 + 0.28, -1, -1])


def test_aspo_changes_nothing_where_all_are_right_or_one_calls():
    everyone = torch.ones(6)
    near(nudged(standardised(everyone, ONE), rewards=everyone), [0.0] * 6)
    credit = standardised(REWARDS, ONE)
    alone = tensor([10, -1, -1, 5, -1, -1])
    assert_close(nudged(credit, calls=alone), credit)
    assert_close(nudged(credit, calls=torch.full((6,), -1)), credit)
    assert_close(nudged(credit, ids=torch.arange(6)), credit)


# Entropy


def test_entropy_adds_to_credit_up_to_half_of_it():
    credit, entropy = tensor([[1.0, -1, 1, 0, NAN]]), tensor([[0.5, 0.5, 3, 3, NAN]])
    mask = tensor([[True, True, True, True, False]])
    near(entropy_advantage(credit, entropy, mask), [[1.2, -0.8, 1.5, 0, 0]])
    near(entropy_advantage(credit, entropy, mask, alpha=0.0), [[1.0, -1, 1, 0, 0]])


def test_the_most_uncertain_fifth_of_the_tokens_is_trained_on():
    entropy = tensor([[0.1, 0.9, 0.5, NAN], [0.3, 1.5, NAN, NAN]])
    mask = entropy.isfinite()
    near(top_entropy_mask(entropy, mask)["weights"], [[0.0, 0, 0, 0], [0, 1, 0, 0]])  # .8 · 4 = 3.2 -> the fifth
    near(top_entropy_mask(entropy, mask, share=0.5)["weights"], [[0.0, 1, 1, 0], [0, 1, 0, 0]])  # the median counts
    near(top_entropy_mask(entropy, mask, share=1.0)["weights"][mask], [1.0] * 5)
    assert (top_entropy_mask(entropy, torch.zeros_like(mask))["weights"] == 1).all()


@pytest.mark.parametrize("share", [0.05, 0.2, 0.3, 0.5, 0.9, 1.0])
def test_top_entropy_tokens_are_those_of_a_quantile(share):
    generator = torch.Generator().manual_seed(0)
    for size in (1, 6, 11, 40):
        entropy = torch.rand(4, size, generator=generator)
        mask = torch.rand(4, size, generator=generator) < 0.7
        if mask.any():
            expected = (entropy >= torch.quantile(entropy[mask].double(), 1 - share).float() - 1e-7) & mask
            assert_close(top_entropy_mask(entropy, mask, share=share)["weights"] * mask, expected.float())


def test_top_entropy_tokens_are_those_of_trl():
    trainer = pytest.importorskip("trl").GRPOTrainer
    alone = SimpleNamespace(pad_across_processes=lambda x, **_: x, gather=lambda x: x)
    generator = torch.Generator().manual_seed(5)
    entropy, mask = torch.rand(6, 9, generator=generator), torch.rand(6, 9, generator=generator) < 0.8
    for share in (0.1, 0.2, 0.5):
        expected = trainer.get_high_entropy_mask(SimpleNamespace(accelerator=alone), entropy, mask, 1 - share)
        assert_close(top_entropy_mask(entropy, mask, share=share)["weights"] > 0, expected)
