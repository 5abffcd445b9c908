"""Clip-Cov and KL-Cov: which tokens are chosen, and what is done with them."""

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from llmrl.objectives.covariance import clip_cov, kl_cov
from llmrl.objectives.m2po import m2po
from llmrl.objectives.policy import clipped_surrogate
from llmrl.ops.reduce import reduce_tokens, row_coefficients
from llmrl.shaping.covariance import clip_cov_selection, covariances, kl_cov_selection

MASK = tensor([[1, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)
CREDIT = tensor([[2.0, 2, 2, 9], [-1, -1, 9, 9]])  # 9: under the mask
NOW = torch.where(MASK, tensor([[0.9, 0.5, 0.1, 1], [0.8, 0.2, 1, 1]]).log(), torch.nan)
OLD = torch.where(MASK, tensor([[0.8, 0.5, 0.12, 1], [0.85, 0.2, 1, 1]]).log(), torch.nan)
STEP = tensor(0)


def token_mean(loss, weights=None):
    return reduce_tokens(loss.values, MASK, row_coefficients("token_mean", MASK.sum(1), tensor([0, 0]), 4), weights)


def test_the_worked_covariances():
    expected = tensor([[1.05765, 0.352305, -1.57902, 0], [-1.37446, 1.12087, 0, 0]])
    assert_close(covariances(NOW, CREDIT, MASK), expected, rtol=1e-5, atol=1e-5)


def test_the_worked_clip():
    assert_close(token_mean(m2po(NOW, OLD, CREDIT)), tensor(-0.795098), rtol=1e-5, atol=1e-6)
    options = {"covariance_low": 0.5, "covariance_high": 5.0}
    both = clip_cov_selection(NOW, OLD, CREDIT, MASK, STEP, fraction=1.0, **options)["weights"]
    assert both.tolist() == [[0, 1, 1, 1], [1, 0, 1, 1]]  # what may be drawn
    totals = set()
    for step in range(20):
        one = clip_cov_selection(NOW, OLD, CREDIT, MASK, tensor(step), fraction=0.2, **options)["weights"]
        assert (one == 0).sum() == 1 and (one >= both).all()
        totals.add(round(float(token_mean(clip_cov(NOW, OLD, CREDIT), one)), 5))
    # without the first, -.795098 + 2 · 1.125 / 5; without the other, -.795098 - 1 / 5
    assert totals == {-0.3451, -0.9951}


def test_the_worked_penalty():
    chosen = kl_cov_selection(NOW, CREDIT, MASK, fraction=0.2)["penalised"]
    assert chosen.tolist() == [[False] * 4, [False, True, False, False]]
    assert_close(token_mean(kl_cov(NOW, OLD, CREDIT, chosen)), tensor(-0.795098), rtol=1e-5, atol=1e-6)


def test_the_penalty_is_the_size_of_the_change_and_its_gradient_the_sign():
    now = tensor([[-0.5, -1.0, -0.7]], requires_grad=True)
    old = tensor([[-0.7, -0.9, -0.7]])
    chosen = torch.ones(1, 3, dtype=torch.bool)
    loss = kl_cov(now, old, torch.zeros(1, 3), chosen, kl_coef=2.0)
    loss.values.sum().backward()
    assert_close(loss.values.detach(), tensor([[0.4, 0.2, 0.0]]))
    assert_close(now.grad, tensor([[2.0, -2.0, 0.0]]))  # and none where the policy has not moved


def test_on_the_first_update_the_penalty_changes_nothing():
    now = NOW.clone().requires_grad_()
    losses = [kl_cov(now, NOW, CREDIT, kl_cov_selection(NOW, CREDIT, MASK, fraction=1.0)["penalised"])]
    losses.append(m2po(now, NOW, CREDIT))
    gradients = [torch.autograd.grad(token_mean(loss), now)[0] for loss in losses]
    assert_close(gradients[0][MASK], gradients[1][MASK], rtol=0, atol=0)


def test_nothing_is_clipped_away_when_credit_or_likelihood_is_constant():
    flat = torch.full_like(CREDIT, 0.7)
    for arrays in ((NOW, OLD, flat), (flat, OLD, CREDIT)):
        weights = clip_cov_selection(*arrays, MASK, STEP, fraction=1.0, covariance_low=0.0)["weights"]
        assert (weights == 1).all()
    assert kl_cov_selection(flat, CREDIT, MASK, fraction=0.4)["penalised"].sum() == 2


def test_tokens_that_the_clip_holds_are_not_drawn():
    options = {"fraction": 1.0, "covariance_low": 0.5, "clip_low": 0.1, "clip_high": 0.1}
    weights = clip_cov_selection(NOW, OLD, CREDIT, MASK, STEP, **options)["weights"]
    assert weights.tolist() == [[1, 1, 1, 1], [1, 0, 1, 1]]  # the first has risen by 1.125 already


def test_an_empty_mask_draws_nothing():
    nothing = torch.zeros_like(MASK)
    assert (clip_cov_selection(NOW, OLD, CREDIT, nothing, STEP)["weights"] == 1).all()
    assert not kl_cov_selection(NOW, CREDIT, nothing)["penalised"].any()


@pytest.fixture
def large():
    generator = torch.Generator().manual_seed(1)
    lp, credit = -torch.rand(30, 40, generator=generator) * 3, torch.randn(30, 40, generator=generator)
    return lp, lp, credit, torch.rand(30, 40, generator=generator) < 0.8


@pytest.mark.parametrize("fraction", [1e-6, 0.01, 0.1, 1.0])
def test_how_many_are_taken(large, fraction):
    counted = int(large[3].sum())
    share = max(1, int(fraction * counted))
    found = covariances(large[0], large[2], large[3])
    eligible = (found > 0.2) & (found < 0.9)
    dropped = (
        clip_cov_selection(*large, STEP, fraction=fraction, covariance_low=0.2, covariance_high=0.9)["weights"] == 0
    )
    assert dropped.sum() == min(share, int(eligible.sum())) and not (dropped & ~eligible).any()
    penalised = kl_cov_selection(large[0], large[2], large[3], fraction=fraction)["penalised"]
    assert penalised.sum() == share and not (penalised & ~large[3]).any()
    if share < counted:
        assert found[penalised].min() >= found[large[3] & ~penalised].max()


def test_a_draw_goes_by_seed_and_step_and_not_by_the_rows_places(large):
    def drawn(order, step, seed):
        arrays = [a[order] for a in large]
        weights = clip_cov_selection(*arrays, tensor(step), fraction=0.02, covariance_low=0.1, seed=seed)["weights"]
        return (weights[order.argsort()] == 0).nonzero().tolist()

    plain, shuffled = torch.arange(30), torch.randperm(30, generator=torch.Generator().manual_seed(0))
    assert drawn(plain, 3, 7) == drawn(shuffled, 3, 7) == drawn(plain, 3, 7)
    assert len({str(drawn(plain, step, seed)) for step in range(4) for seed in range(3)}) == 12


def test_within_0_and_2_the_objective_is_the_clipped_surrogate():
    wide = clipped_surrogate(NOW, OLD, CREDIT, clip_low=1.0, clip_high=1.0)
    assert_close(clip_cov(NOW, OLD, CREDIT).values, wide.values, rtol=0, atol=0, equal_nan=True)


def trained(make_loss, epochs=4, steps=100, seed=0):
    """(entropy, accuracy) of a table of eight prompts and sixteen one-token answers, four of them right."""
    generator = torch.Generator().manual_seed(seed)
    table = (0.7 * torch.randn(8, 16, generator=generator)).requires_grad_()
    right = torch.zeros(8, 16)
    right[:, :4] = 1.0
    for step in range(steps):
        spread = table.detach().softmax(-1)
        answers = torch.multinomial(spread, 8, replacement=True, generator=generator)
        reward = right.gather(1, answers)
        credit = (reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-6)
        old = table.detach().log_softmax(-1).gather(1, answers)
        for _ in range(epochs):
            now = table.log_softmax(-1).gather(1, answers)
            (slope,) = torch.autograd.grad(make_loss(now, old, credit, step).mean(1).sum(), table)
            table = (table - 0.5 * slope).detach().requires_grad_()
    spread = table.detach().softmax(-1)
    return float(-(spread * spread.log()).sum(1).mean()), float((spread * right).sum(1).mean())


@pytest.mark.parametrize("seed", [0, 1])
def test_both_keep_entropy_up_on_a_table(seed):
    mask = torch.ones(8, 8, dtype=torch.bool)

    def clipped(fraction):
        def loss(now, old, credit, step):
            out = clip_cov(now, old, credit).values
            if fraction:
                chosen = clip_cov_selection(
                    now.detach(),
                    old,
                    credit,
                    mask,
                    tensor(step),
                    fraction=fraction,
                    covariance_low=0.2,
                    covariance_high=20.0,
                )
                out = out * chosen["weights"]
            return out

        return loss

    def penalised(fraction):
        def loss(now, old, credit, step):
            chosen = kl_cov_selection(now.detach(), credit, mask, fraction=fraction)["penalised"]
            return kl_cov(now, old, credit, chosen if fraction else torch.zeros_like(mask)).values

        return loss

    for method in (clipped, penalised):
        plain, held = trained(method(0.0), seed=seed), trained(method(0.2), seed=seed)
        assert held[0] > plain[0] and held[1] > plain[1] - 0.03, (method, plain, held)
    assert trained(penalised(0.2), epochs=1, steps=5) == trained(penalised(0.0), epochs=1, steps=5)
