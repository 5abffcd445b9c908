"""HAPO: entropy scores, credit by token, redistribution, clip ranges."""

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from llmrl.advantages.group import standardised
from llmrl.advantages.hapo import hapo_group
from llmrl.objectives.hapo import hapo
from llmrl.objectives.policy import clipped_surrogate
from llmrl.ops.entropy_scores import clip_ranges, scale_of, scores
from llmrl.shaping.hapo import hapo_redistribution, hapo_scores

MASK = tensor([[1, 1, 1, 1], [1, 1, 1, 0]], dtype=torch.bool)
ENTROPY = tensor([[0.01, 0.1, 0.5, 1], [0.02, 0.2, 2, torch.nan]])
SCORES = tensor([[-1, -0.5, -0.150515, 0], [-0.849485, -0.349485, 1, 0]])
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def test_the_worked_scale_and_scores():
    assert_close(tensor(scale_of(ENTROPY[MASK], 0.8)), tensor([0, 2.54571, 0.27228, 1.80899]), **CLOSE)
    assert_close(hapo_scores(ENTROPY, MASK)["entropy_scores"], SCORES, **CLOSE)
    assert_close(hapo_scores(ENTROPY, MASK, released_sign=True)["entropy_scores"], SCORES.abs(), **CLOSE)


def test_the_worked_temperatures():
    found = 1 + 0.05 * scores(tensor([0.05, 1, 1.5]), scale_of(ENTROPY[MASK], 0.8))
    assert_close(found, tensor([0.967474, 1, 1.02925]), **CLOSE)


def test_scores_beyond_the_scale_are_cut():
    found = scores(tensor([0.0, 1e-6, 50.0]), scale_of(ENTROPY[MASK], 0.8))
    assert found.tolist() == [-1, -1, 1]


def test_the_worked_clip_ranges():
    low, high = clip_ranges(SCORES, 0.2, 0.2, 1.0)
    assert_close(low, tensor([[0.4, 0.3, 0.230103, 0.2], [0.369897, 0.269897, 0.2, 0.2]]), **CLOSE)
    assert_close(high, tensor([[0.2, 0.2, 0.2, 0.2], [0.2, 0.2, 0.4, 0.2]]), **CLOSE)


def test_the_worked_redistribution():
    ratio = tensor([[1, 1.3, 1, 1], [0.7, 1, 1.35, 1]])
    found = hapo_redistribution(ratio.log(), torch.zeros(2, 4), torch.ones(2, 4), SCORES)["advantages"]
    assert_close(found, tensor([[0, 1, 0.849485, 1], [1, 0.650515, 2, 1]]), **CLOSE)


def test_redistribution_of_strength_0_keeps_the_credit():
    credit = tensor([[1.0, -2, 3, 0], [0.5, 1, -1, 2]])
    kept = hapo_redistribution(torch.zeros(2, 4), torch.zeros(2, 4), credit, SCORES, beta=0.0)["advantages"]
    assert_close(kept, credit, rtol=0, atol=0)


def test_the_worked_credit_of_a_group():
    lengths = tensor([2, 4, 6, 3])
    found = hapo_group(tensor([1.0, 0, 0, 1]), lengths, torch.zeros(4, dtype=torch.long))
    assert_close(found, tensor([1.41421, -0.707105, -0.707105, 1.41421]), **CLOSE)
    assert_close((lengths * found).sum(), tensor(0.0), atol=1e-5, rtol=0)  # tokens share it out exactly


def test_a_group_with_an_extreme_credit_gets_that_of_grpo():
    rewards = tensor([1.0, 0, 0, 1, 0, 1])
    lengths = tensor([1, 40, 40, 5, 5, 5])  # one token of 81 right: sqrt(80) > 5
    groups = tensor([3, 3, 3, 8, 8, 8])
    found = hapo_group(rewards, lengths, groups)
    grpo = standardised(rewards, groups)
    assert_close(found[:3], grpo[:3], rtol=0, atol=0)
    assert_close(found[3:], tensor([1.0, -2, 1]) / 2**0.5, rtol=1e-5, atol=1e-5)  # std with n is sqrt(2) / 3


def test_rows_without_a_token_neither_get_nor_give_credit():
    rewards, groups = tensor([1.0, 0, 0, 1, 1, 0]), torch.zeros(6, dtype=torch.long)
    lengths = tensor([2, 4, 6, 3, 0, 0])
    found = hapo_group(rewards, lengths, groups)
    assert_close(found, tensor([1.41421, -0.707105, -0.707105, 1.41421, 0, 0]), **CLOSE)
    assert (hapo_group(rewards, torch.zeros(6, dtype=torch.long), groups) == 0).all()
    assert (hapo_group(torch.ones(6), lengths, groups) == 0).all()


def test_group_credit_matches_a_loop_over_tokens():
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(30, generator=generator)
    lengths, groups = torch.randint(1, 9, (30,), generator=generator), torch.arange(30) % 5
    found = hapo_group(rewards, lengths, groups)
    for group in range(5):
        rows = [i for i in range(30) if groups[i] == group]
        tokens = tensor([rewards[i] for i in rows for _ in range(lengths[i])])
        for i in rows:
            expected = (rewards[i] - tokens.mean()) / (tokens.std(unbiased=False) + 1e-6)
            assert_close(found[i], expected, rtol=1e-4, atol=1e-5)


def slow(ratio, credit, score, dual=10.0):
    low, high = (0.2 * (1 - score), 0.2) if score <= 0 else (0.2, 0.2 * (1 + score))
    loss = max(-credit * ratio, -credit * min(max(ratio, 1 - low), 1 + high))
    return min(loss, -credit * dual) if credit < 0 else loss


def test_the_objective_matches_a_loop():
    generator = torch.Generator().manual_seed(2)
    lp = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    credit, score = torch.randn(2, 5, 6, generator=generator, dtype=torch.float64)
    score = score.clamp(-1, 1)
    loss = hapo(lp, torch.zeros_like(lp), credit, score)
    expected = [
        [slow(lp[i, t].exp().item(), credit[i, t].item(), score[i, t].item()) for t in range(6)] for i in range(5)
    ]
    assert_close(loss.values, tensor(expected, dtype=torch.float64))


def test_ranges_open_on_one_side_each():
    lp = tensor([[0.7, 1.3, 0.7, 1.3]]).log().requires_grad_()
    credit, score = tensor([[-1.0, 1, -1, 1]]), tensor([[-1.0, -1, 1, 1]])
    hapo(lp, torch.zeros(1, 4), credit, score).values.sum().backward()
    # certain tokens may fall to .6, uncertain ones rise to 1.4; the other sides hold at .8 and 1.2
    assert_close(lp.grad, tensor([[0.7, 0, 0, -1.3]]))


def test_a_dual_clip_bounds_negative_credit():
    lp = tensor([[20.0, 1.0]]).log().requires_grad_()
    loss = hapo(lp, torch.zeros(1, 2), tensor([[-1.0, -1.0]]), torch.zeros(1, 2))
    loss.values.sum().backward()
    assert_close(loss.values.detach(), tensor([[10.0, 1.0]]))
    assert_close(lp.grad, tensor([[0.0, 1.0]]))


@pytest.mark.parametrize("entropy", [0.0, 0.3])
def test_constant_entropy_is_plain_ppo(worked, entropy):
    mask = worked["loss_mask"]
    scored = hapo_scores(torch.full(mask.shape, entropy), mask)["entropy_scores"]
    assert (scored == 0).all()
    given = (worked["logprobs"], worked["old_logprobs"], worked["advantages"])
    moved = hapo_redistribution(*given, scored)["advantages"]
    assert_close(moved, worked["advantages"], rtol=0, atol=0)
    assert_close(hapo(*given, scored, dual_clip=None).values, clipped_surrogate(*given).values, rtol=0, atol=0)


def test_nothing_counted_scores_nothing():
    assert (hapo_scores(ENTROPY, torch.zeros_like(MASK))["entropy_scores"] == 0).all()


def test_fewer_tokens_are_clipped_on_the_side_that_opens():
    generator = torch.Generator().manual_seed(5)
    entropy = torch.rand(40, 30, generator=generator) ** 3 * 2
    mask = torch.ones(40, 30, dtype=torch.bool)
    change = 0.4 * torch.randn(40, 30, generator=generator)
    credit = torch.randn(40, 1, generator=generator).expand(40, 30)
    scored = hapo_scores(entropy, mask)["entropy_scores"]
    adapted = hapo(change, torch.zeros(40, 30), credit, scored).stats["ratio/clip_fraction"]
    uniform = hapo(change, torch.zeros(40, 30), credit, scored, clip_scale=0.0).stats["ratio/clip_fraction"]
    rising, falling = (credit > 0) & (scored > 0), (credit < 0) & (scored < 0)
    for side in (rising, falling):
        assert adapted[side].sum() < uniform[side].sum()
    other = ~rising & ~falling
    assert (adapted[other] == uniform[other]).all()
