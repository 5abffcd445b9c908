"""Weights and masks for an engine, or a policy, that has drifted."""

import math

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from llmrl.batch import Loss
from llmrl.objectives.m2po import m2po
from llmrl.objectives.policy import clipped_surrogate
from llmrl.ops.reduce import reduce_tokens, row_coefficients
from llmrl.shaping.importance import icepop, importance_weights, ratio_to_sampler, rejection_mask
from llmrl.shaping.m2po import m2po_mask
from llmrl.shaping.opsm import opsm

ROLLOUT = tensor([[-0.68, -1.05, -0.35], [-0.85, -1.3, 0], [-0.55, -0.8, -2.1], [-1.5, 0, 0]])


@pytest.fixture
def given(worked):
    return worked | {"logprobs": worked["logprobs"].detach(), "rollout_logprobs": ROLLOUT}


def of(given, part, *names, **options):
    (out,) = part(*(given[n] for n in names), **options).values()
    return out


def weights(given, **options):
    return of(given, importance_weights, "old_logprobs", "rollout_logprobs", "loss_mask", **options)


def kept(given, **options):
    return of(given, rejection_mask, "old_logprobs", "rollout_logprobs", "loss_mask", **options)


def token_mean(given, loss: Loss, weight):
    mask = given["loss_mask"]
    coefficients = row_coefficients("token_mean", mask.sum(1), given["group_ids"], 3)
    return reduce_tokens(loss.values, mask, coefficients, weight)


def test_worked_weights_of_tokens(given):
    found = weights(given)
    assert_close(found[2], tensor([0.951229, 1.05127, 2.0]), rtol=1e-5, atol=1e-6)
    loss = clipped_surrogate(given["logprobs"], given["old_logprobs"], given["advantages"])
    assert_close(token_mean(given, loss, found), tensor(-0.281261), rtol=1e-5, atol=1e-6)


def test_worked_ratios_to_the_sampler(given):
    # row 1: log-ratios 0.18, -0.15, 0.05, all within the clip, and A = 1; row 4: exp(0.4) = 1.49, and A = -0.5 bears no clip
    old = of(given, ratio_to_sampler, "rollout_logprobs", "loss_mask")
    loss = clipped_surrogate(given["logprobs"], old, given["advantages"]).values
    assert_close(loss[0], tensor([-1.197217, -0.860708, -1.051271]), rtol=1e-5, atol=1e-6)
    assert_close(loss[3, 0], tensor(0.5 * 1.491825), rtol=1e-5, atol=1e-6)


RAW = [1.03045, 0.951229, 2.4596, 0.904837]


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"high": 1e6}, RAW),
        ({"high": 2.0}, [*RAW[:2], 2.0, RAW[3]]),
        ({"high": 2.0, "mode": "mask"}, [*RAW[:2], 0.0, RAW[3]]),
        ({"high": 3.0, "mode": "mask"}, RAW),
        ({"high": 3.0, "low": 0.92, "mode": "mask"}, [*RAW[:3], 0.0]),
        ({"high": 1.06, "mode": "clip"}, [*RAW[:2], 1.06, 1 / 1.06]),
        ({"high": 3.0, "low": 0.92}, [*RAW[:3], 0.92]),
    ],
)
def test_worked_weights_of_answers(given, options, expected):
    found = weights(given, level="sequence", **options)
    assert_close(found, tensor(expected)[:, None].expand(4, 3), rtol=1e-5, atol=1e-6)


def test_a_geometric_weight_is_the_token_ratio_of_the_mean(given):
    found = weights(given, level="geometric", high=5.0)
    counts = given["loss_mask"].sum(1)
    assert_close(found[:, 0], tensor(RAW) ** (1 / counts), rtol=1e-5, atol=1e-6)


def test_normalised_weights_have_mean_one(given):
    mask = given["loss_mask"].clone()
    mask[3] = False
    found = weights(given | {"loss_mask": mask}, normalize=True)
    assert_close(found[mask].mean(), tensor(1.0))
    by_row = weights(given | {"loss_mask": mask}, level="sequence", mode="clip", normalize=True)
    assert_close(by_row[:3, 0].mean(), tensor(1.0))
    nothing = weights(given, level="sequence", mode="mask", low=9.0, high=10.0, normalize=True)
    assert (nothing == 0).all()


def test_icepop_is_a_band_of_token_weights(given):
    found = of(given, icepop, "old_logprobs", "rollout_logprobs", "loss_mask", low=0.95, high=2.0)
    ratio = (given["old_logprobs"] - ROLLOUT).exp()
    inside = (ratio >= 0.95) & (ratio <= 2.0)
    assert not inside[2, 2] and not inside[3, 0] and inside.sum() > 4
    assert_close(found, torch.where(inside, ratio, 0.0))


def test_without_drift_nothing_is_corrected(given):
    still = given | {"rollout_logprobs": given["old_logprobs"]}
    for level in ("token", "sequence", "geometric"):
        for mode in ("truncate", "mask", "clip"):
            assert (weights(still, level=level, mode=mode) == 1).all()
    for level in ("token", "sequence_sum", "sequence_mean", "sequence_max"):
        for estimator in ("k1", "k2", "k3"):
            found = kept(still, level=level, estimator=estimator, veto=0.5)
            assert (found == given["loss_mask"]).all()


def rows_kept(given, **options):
    mask = kept(given, **options)
    assert all(not row.any() or bool((row == full).all()) for row, full in zip(mask, given["loss_mask"], strict=True))
    return mask.any(1).tolist()


def test_the_worked_rejection(given):
    assert rows_kept(given, low=0.9, high=1.1) == [True, True, False, True]


# log ratios of the worked input: [-.02 .05 0] [.05 -.1] [-.05 .05 .9] [-.1]
@pytest.mark.parametrize(
    "options, expected",
    [
        ({"level": "sequence_sum", "low": 0.92, "high": 1.1}, [True, True, False, False]),
        ({"level": "sequence_sum", "low": 0.96, "high": 1.1}, [True, False, False, False]),
        ({"level": "sequence_sum", "low": None, "high": 1.1}, [True, True, False, True]),
        ({"level": "sequence_max", "low": 0.92, "high": 1.1}, [True, False, False, False]),
        ({"level": "sequence_max", "low": 0.5, "high": 2.0}, [True, True, False, True]),
        ({"level": "sequence_mean", "estimator": "k2", "high": 0.004}, [True, True, False, False]),
        ({"level": "sequence_max", "estimator": "k2", "high": 0.004}, [True, False, False, False]),
        ({"level": "sequence_sum", "estimator": "k3", "high": 0.1}, [True, True, False, True]),
        ({"level": "sequence_mean", "low": 0.5, "high": 2.0, "veto": 0.95}, [True, False, True, False]),
    ],
)
def test_rejected_answers(given, options, expected):
    assert rows_kept(given, **options) == expected


def test_rejected_tokens_leave_the_mask_and_their_answers_stay(given):
    found = kept(given, level="token", low=0.92, high=1.1)
    dropped = torch.zeros(4, 3, dtype=torch.bool)
    dropped[1, 1] = dropped[2, 2] = dropped[3, 0] = True
    assert_close(found, given["loss_mask"] & ~dropped)


def test_bounds_are_those_of_the_ratio_and_not_of_its_inverse(given):
    assert rows_kept(given, low=0.5, high=1.2) == [True, True, False, True]  # row 3 has exp(.3) = 1.35
    assert rows_kept(given, low=0.8, high=2.0) == [True] * 4  # 1 / 1.35 would be outside


def statistic(changes, level, estimator):
    values = [{"k1": c, "k2": c * c / 2, "k3": math.exp(c) - 1 - c}[estimator] for c in changes]
    return {"sequence_sum": sum(values), "sequence_mean": sum(values) / len(values), "sequence_max": max(values)}[level]


@pytest.mark.parametrize("level", ["sequence_sum", "sequence_mean", "sequence_max"])
@pytest.mark.parametrize("estimator", ["k2", "k3"])
@pytest.mark.parametrize("high", [0.003, 0.02, 0.1])
def test_rejection_matches_a_loop(level, estimator, high):
    generator = torch.Generator().manual_seed(0)
    old, mask = -torch.rand(20, 7, generator=generator), torch.rand(20, 7, generator=generator) < 0.7
    rollout = old + 0.2 * torch.randn(20, 7, generator=generator)
    found = rejection_mask(old, rollout, mask, level=level, estimator=estimator, high=high)["loss_mask"]
    for row in range(20):
        changes = [(old - rollout)[row, t].item() for t in range(7) if mask[row, t]]
        expected = bool(changes) and statistic(changes, level, estimator) <= high
        assert found[row].any() == expected, (row, changes)


def test_the_worked_answers_that_opsm_leaves_out(given):
    names = ("logprobs", "rollout_logprobs", "advantages", "loss_mask")
    found = of(given, opsm, *names, threshold=0.1)
    assert found.tolist() == [[1.0] * 3, [0.0] * 3, [1.0] * 3, [1.0] * 3]
    assert (of(given, opsm, *names, threshold=0.5) == 1).all()
    praised = given | {"advantages": given["advantages"].abs()}
    assert (of(praised, opsm, *names, threshold=-9.0) == 1).all()
    assert (of(given | {"advantages": torch.zeros(4, 3)}, opsm, *names, threshold=-9.0) == 1).all()  # 0 is not negative


def test_the_worked_tokens_that_m2po_leaves_out(given):
    names = ("logprobs", "old_logprobs", "advantages", "loss_mask")
    found = of(given, m2po_mask, *names)
    expected = torch.ones(4, 3)
    expected[1, 1] = expected[2, 0] = 0.0
    assert_close(found, expected)
    loss = m2po(given["logprobs"], given["old_logprobs"], given["advantages"])
    assert_close(token_mean(given, loss, found), tensor(-0.250917), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("threshold", [0.0, 0.001, 0.01, 0.04, 0.2, 10.0])
def test_m2po_matches_dropping_one_after_the_other(threshold):
    generator = torch.Generator().manual_seed(3)
    lp, old, credit = (torch.randn(6, 8, generator=generator) for _ in range(3))
    lp, mask = old + 0.3 * lp, torch.rand(6, 8, generator=generator) < 0.8
    found = m2po_mask(lp, old, credit, mask, threshold=threshold)["weights"]
    change = (lp - old).double()
    trusted = {(i, t) for i in range(6) for t in range(8) if mask[i, t] and (credit * change)[i, t] > 0}
    while trusted and sum(change[p].item() ** 2 for p in trusted) / len(trusted) > threshold:
        trusted.remove(max(trusted, key=lambda p: change[p].item() ** 2))
    led = mask & (credit * change > 0)
    expected = {tuple(p) for p in led.nonzero().tolist()} - trusted
    assert {tuple(p) for p in (found == 0).nonzero().tolist()} == expected


def test_on_policy_m2po_leaves_nothing_out(given):
    still = (given["logprobs"], given["logprobs"], given["advantages"], given["loss_mask"])
    assert (m2po_mask(*still, threshold=0.0)["weights"] == 1).all()
