import math

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from llmrl.ops import kl
from llmrl.ops.groups import group_mean, group_spread, group_std
from llmrl.ops.masked import last_counted, masked_mean, masked_sum, whiten
from llmrl.ops.ratio import log_ratio
from llmrl.ops.returns import generalised_advantages

NAN = float("nan")


def test_group_statistics_go_by_id():
    x, ids = tensor([1.0, 10.0, 3.0, 20.0, 5.0]), tensor([9, 4, 9, 4, 9])
    assert_close(group_mean(x, ids), tensor([3.0, 15, 3, 15, 3]))
    # n-1: {1, 3, 5} -> 2, {10, 20} -> sqrt(50)
    assert_close(group_std(x, ids), tensor([2.0, 50**0.5, 2, 50**0.5, 2]))
    assert group_spread(x, ids).all()


def test_a_group_of_one_has_no_spread_and_std_zero():
    x, ids = tensor([0.1, 0.1, 0.1, 7.0]), tensor([0, 0, 0, 1])
    assert not group_spread(x, ids).any()
    assert group_std(x, ids)[3] == 0


def test_the_smallest_difference_is_spread():
    x = torch.stack([tensor(1.0), torch.nextafter(tensor(1.0), tensor(2.0))])
    assert group_spread(x, tensor([0, 0])).all()


def test_masked_sums_skip_what_is_not_finite():
    x, mask = tensor([[1.0, NAN, 3.0], [math.inf, 5.0, NAN]]), tensor([[True, False, True], [False, True, False]])
    assert masked_sum(x, mask) == 9
    assert_close(masked_sum(x, mask, dim=1), tensor([4.0, 5.0]))
    assert masked_mean(x, mask) == 3
    assert masked_mean(x, torch.zeros_like(mask)) == 0


def test_whitened_entries_have_mean_0_and_variance_1_with_n_minus_1():
    x, mask = tensor([[1.0, 2.0, NAN], [6.0, NAN, 3.0]]), tensor([[True, True, False], [True, False, True]])
    # mean 3, variance ((-2)² + (-1)² + 3² + 0) / 3 = 14/3
    expected = tensor([[-2.0, -1.0, 0.0], [3.0, 0.0, 0.0]]) / (14 / 3) ** 0.5
    assert_close(whiten(x, mask), expected)


@pytest.mark.parametrize("mask", [[[True, False]], [[False, False]]])
def test_fewer_than_two_entries_cannot_be_whitened(mask):
    assert (whiten(tensor([[5.0, NAN]]), tensor(mask)) == 0).all()


def test_last_counted_looks_over_holes():
    mask = tensor([[1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]], dtype=torch.bool)
    expected = tensor([[0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]], dtype=torch.bool)
    assert torch.equal(last_counted(mask), expected)


def test_ratios_stay_finite_in_half_precision():
    ratio = log_ratio(tensor([0.0, -900.0]).bfloat16(), tensor([-900.0, 0.0]).bfloat16()).exp()
    assert ratio.isfinite().all() and ratio[0] > 1e8


def test_estimators_of_one_token():
    # policy 0.5, other 0.25: d = ln 2; k3 = 1/2 - 1 + ln 2
    here, other = tensor([0.5]).log(), tensor([0.25]).log()
    assert_close(kl.k1(here, other), tensor([math.log(2)]))
    assert_close(kl.k2(here, other), tensor([math.log(2) ** 2 / 2]))
    assert_close(kl.k3(here, other), tensor([math.log(2) - 0.5]))


def test_estimators_on_the_worked_input(worked):
    mask, here, other = worked["loss_mask"], worked["logprobs"].detach(), worked["ref_logprobs"]
    means = [masked_mean(k(here, other), mask) for k in (kl.k1, kl.k2, kl.k3)]
    assert_close(torch.stack(means), tensor([0.0, 0.0411111, 0.0430454]), rtol=1e-5, atol=1e-6)


def test_k3_does_not_cancel_for_small_differences():
    assert_close(kl.k3(tensor([1e-4]), tensor([0.0])), tensor([0.5e-8]), rtol=1e-3, atol=0)


def quadratic(rewards, values, mask, gamma, lam):
    """Σ_u (gamma lam)^(u-t) delta_u over the counted tokens of one row, each sum taken on its own."""
    counted = [t for t, c in enumerate(mask) if c]
    out = [0.0] * len(mask)
    for i, t in enumerate(counted):
        for j in range(i, len(counted)):
            after = values[counted[j + 1]] if j + 1 < len(counted) else 0.0
            delta = rewards[counted[j]] + gamma * after - values[counted[j]]
            out[t] += (gamma * lam) ** (j - i) * delta
    return out


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.8, 0.0)])
def test_generalised_advantages_equal_the_slow_sum_over_counted_tokens(gamma, lam):
    generator = torch.Generator().manual_seed(3)
    rewards, values = torch.randn(2, 6, 9, generator=generator)
    mask = torch.rand(6, 9, generator=generator) < 0.6
    mask[5] = False
    expected = tensor(
        [quadratic(*rows, gamma, lam) for rows in zip(rewards.tolist(), values.tolist(), mask.tolist(), strict=True)]
    )
    hostile = values.masked_fill(~mask, NAN)
    assert_close(generalised_advantages(rewards.masked_fill(~mask, NAN), hostile, mask, gamma, lam), expected)
