"""Policy losses that differ in what they do with the probability ratio: worked numbers, slow loops, limits."""

import math
from functools import partial

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from llmrl.batch import Batch, call
from llmrl.objectives.decoupled import decoupled_ppo
from llmrl.objectives.dppo import dppo, prime
from llmrl.objectives.m2po import m2po
from llmrl.objectives.mhpo import mhpo
from llmrl.objectives.policy import clipped_surrogate, two_sided_clip
from llmrl.objectives.reinforce import reinforce
from llmrl.objectives.sapo import sapo
from llmrl.objectives.sequence import gmpo, gspo, gspo_token, luspo, rloo_clip
from llmrl.objectives.taypo import taypo2
from llmrl.objectives.weighted import cispo, vespo
from llmrl.ops.reduce import reduce_tokens, reduce_units, row_coefficients

ROLLOUT = [[-0.68, -1.05, -0.35], [-0.85, -1.3, 0], [-0.55, -0.8, -2.1], [-1.5, 0, 0]]


def total_of(part, arrays, mode="token_mean"):
    """(loss, gradient) of a part on arrays of the worked input's kind, as the trainer reduces it."""
    logprobs = arrays["logprobs"].detach().clone().requires_grad_()
    loss = call(part, Batch([], arrays | {"logprobs": logprobs}))
    mask = arrays["loss_mask"]
    if loss.unit == "token":
        total = reduce_tokens(loss.values, mask, row_coefficients(mode, mask.sum(1), arrays["group_ids"], 3))
    else:
        total = reduce_units(loss.values, int(mask.any(1).sum()))
    (gradient,) = torch.autograd.grad(total, logprobs)
    return total.detach(), gradient


def filled(mask, numbers):
    """[B,T] with the numbers in their order on the counted places."""
    out = torch.zeros(mask.shape)
    out[mask] = tensor(numbers)
    return out


@pytest.fixture
def given(worked):
    return worked | {"rollout_logprobs": tensor(ROLLOUT)}


@pytest.mark.parametrize(
    "mode, total, gradient",
    [
        ("token_mean", -0.0277778, [-1 / 9] * 3 + [1 / 9] * 2 + [-1 / 18] * 3 + [1 / 18]),
        ("sequence_sum", -0.0625, [-0.25] * 3 + [0.25] * 2 + [-0.125] * 3 + [0.125]),
        ("sequence_mean", -0.233333, [-0.0833333] * 3 + [0.125] * 2 + [-0.0416667] * 3 + [0.125]),
        ("fixed_length", -0.0208333, [-1 / 12] * 3 + [1 / 12] * 2 + [-1 / 24] * 3 + [1 / 24]),
        ("group_mean", -0.00875, [-0.1] * 3 + [0.1] * 2 + [-0.0625] * 3 + [0.0625]),
    ],
)
def test_reinforce_in_each_reduction(given, mode, total, gradient):
    found = total_of(reinforce, given, mode)
    assert_close(found[0], tensor(total), rtol=1e-5, atol=1e-6)
    assert_close(found[1], filled(given["loss_mask"], gradient), rtol=1e-5, atol=1e-6)


WORKED = {
    "two-sided, delta 1.5": (
        partial(two_sided_clip, delta=1.5),
        "token_mean",
        -0.234579,
        [0, -0.0909701, -0.116808, 0.100537, 0, 0, -0.0584039, -0.0411566, 0],
    ),
    "TayPO-2": (
        partial(taypo2, deviation_clip=None),
        "token_mean",
        -0.0791419,
        [-0.265656, -0.260494, -0.273366, 0.124146, 0.124146, -0.147707, -0.16198, -0.142894, 0.20609],
    ),
    "TayPO, first order": (partial(taypo2, eta=0.0, deviation_clip=None), "token_mean", -0.113838, None),
    "RLOO clip": (rloo_clip, "token_mean", -0.0019569, [-0.262818] * 3 + [0, 0] + [-0.145229] * 3 + [0.20609]),
    "MHPO": (
        mhpo,
        "sequence_mean",
        -0.0100657,
        [-0.0279876, -0.0156324, -0.023678, 0.0282476, 0.00886906, -0.0159345, -0.011839, -0.00632685, 0.0491623],
    ),
    "GSPO": (gspo, "token_mean", 0.0808652, None),
    "GSPO, wide": (
        partial(gspo, clip_low=0.2, clip_high=0.3),
        "token_mean",
        0.0204797,
        [-0.0847339] * 3 + [0, 0] + [-0.043803] * 3 + [0.20609],
    ),
    "GSPO-token, wide": (
        partial(gspo_token, clip_low=0.2, clip_high=0.3),
        "sequence_mean",
        0.0204797,
        [-0.0847339] * 3 + [0, 0] + [-0.043803] * 3 + [0.20609],
    ),
    "LUSPO, wide": (partial(luspo, clip_low=0.2, clip_high=0.3), "token_mean", -0.550741, None),
    "CISPO": (
        cispo,
        "token_mean",
        0.0180586,  # the gradient is -A r / 9
        [-0.135711, -0.0909701, -0.116808, 0.100537, 0.0609791, -0.0828791, -0.0584039, -0.0411566, 0.0915956],
    ),
    "CISPO with a floor": (
        partial(cispo, ratio_min=0.8, ratio_max=1.2),
        "token_mean",
        -0.00983895,
        [-1.2 / 9, -0.0909701, -0.116808, 0.100537, 0.8 / 9, -0.6 / 9, -0.0584039, -0.4 / 9, 0.6 / 9],
    ),
    "SAPO": (sapo, "sequence_mean", -0.0439411, None),
    "GMPO": (gmpo, "token_mean", 0.0151799, None),
    "decoupled, cap 5": (partial(decoupled_ppo, cap=5.0), "token_mean", -0.300176, None),
    "decoupled, cap 1.2": (partial(decoupled_ppo, cap=1.2), "token_mean", -0.198948, None),
    "prime": (prime, "token_mean", -0.264212, None),
    "prime, symmetric": (partial(prime, region="symmetric", delta=0.1), "token_mean", -0.301039, None),
}
SAMPLED_BY_OLD = {  # worked with the old policy as the sampler
    "VESPO": (vespo, 0.138512),
    "DPPO, total variation": (partial(dppo, delta_low=0.1, delta_high=0.1), 0.0555852),
    "DPPO, KL": (partial(dppo, divergence="kl", delta_low=0.05, delta_high=0.05), 0.00148272),
}


@pytest.mark.parametrize("part, mode, total, gradient", WORKED.values(), ids=WORKED)
def test_worked_numbers(given, part, mode, total, gradient):
    found = total_of(part, given, mode)
    assert_close(found[0], tensor(total), rtol=1e-5, atol=1e-6)
    if gradient:
        assert_close(found[1], filled(given["loss_mask"], gradient), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("part, total", SAMPLED_BY_OLD.values(), ids=SAMPLED_BY_OLD)
def test_worked_numbers_with_the_old_policy_as_the_sampler(given, part, total):
    found, _ = total_of(part, given | {"rollout_logprobs": given["old_logprobs"]})
    assert_close(found, tensor(total), rtol=1e-5, atol=1e-6)


def clamp(x, low, high):
    return min(max(x, low), high)


def surrogate(r, a, low=0.2, high=0.2):
    """(loss, slope in log r)."""
    held = (a > 0 and r > 1 + high) or (a < 0 and r < 1 - low)
    return max(-a * r, -a * clamp(r, 1 - low, 1 + high)), 0.0 if held else -a * r


def slow_two_sided(lp, old, roll, a):
    loss, slope = surrogate(math.exp(lp - old), a)
    return (-a * 1.3, 0.0) if a < 0 and math.exp(lp - old) > 1.3 else (loss, slope)


def slow_cispo(lp, old, roll, a):
    weight = clamp(math.exp(lp - old), 0.7, 1.2)
    return -weight * a * lp, -weight * a


def slow_sapo(lp, old, roll, a):
    tau, r = (1.0 if a > 0 else 1.05), math.exp(lp - old)
    gate = 1 / (1 + math.exp(-tau * (r - 1)))
    return -a * 4 / tau * gate, -a * 4 * gate * (1 - gate) * r


def slow_mhpo(lp, old, roll, a):
    psi = 1.5 * math.tanh((lp - old) / 1.5)
    zeta = math.log1p(math.exp(psi)) ** 1.5 + (math.log1p(math.exp(-psi)) / 0.8) ** 2
    value = -a * math.exp(psi - zeta)
    return value, value / math.cosh((lp - old) / 1.5) ** 2


def slow_decoupled(lp, old, roll, a):
    weight = math.exp(old - roll)
    loss, slope = surrogate(math.exp(lp - old), a)
    return (0.0, 0.0) if weight > 1.2 else (weight * loss, weight * slope)


def slow_dppo_tv(lp, old, roll, a):
    p, q, r = math.exp(lp), math.exp(roll), min(math.exp(lp - roll), 1.4)
    kept = p - q <= 0.05 if a > 0 else p - q >= -0.1
    return (-r * a * lp, -r * a) if kept else (0.0, 0.0)


def slow_dppo_kl(lp, old, roll, a):
    p, q, r = math.exp(lp), math.exp(roll), math.exp(lp - roll)
    moved = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
    back = p <= q if a > 0 else p >= q
    return (-r * a * lp, -r * a) if moved <= 0.02 or back else (0.0, 0.0)


def slow_prime(lp, old, roll, a):
    p, q, r, d = math.exp(lp), math.exp(roll), math.exp(lp - roll), lp - roll
    kept = p - q <= 0.1 if a > 0 else p - q >= -0.1
    return (-a * r if kept else 0.0) + 0.5 * d * d, (-a * r if kept else 0.0) + d


def slow_m2po(lp, old, roll, a):
    return (-a * math.exp(lp - old),) * 2


TOKENS = {
    "two_sided_clip": (partial(two_sided_clip, delta=1.3), slow_two_sided),
    "cispo": (partial(cispo, ratio_min=0.7, ratio_max=1.2), slow_cispo),
    "sapo": (sapo, slow_sapo),
    "mhpo": (mhpo, slow_mhpo),
    "decoupled_ppo": (partial(decoupled_ppo, cap=1.2), slow_decoupled),
    "dppo tv": (partial(dppo, delta_low=0.1, delta_high=0.05, ratio_max=1.4), slow_dppo_tv),
    "dppo kl": (partial(dppo, divergence="kl", delta_low=0.02, delta_high=0.02), slow_dppo_kl),
    "prime": (partial(prime, delta=0.1, kl_coef=0.5), slow_prime),
    "m2po": (m2po, slow_m2po),
}


def ratio_of(row, normalised=True):
    total = sum(lp - old for lp, old, _, _ in row)
    return math.exp(total / len(row) if normalised else total)


def slow_gspo(row):
    loss, slope = surrogate(ratio_of(row), row[0][3], 0.05, 0.1)
    return loss, [slope / len(row)] * len(row)


def slow_luspo(row):
    loss, slopes = slow_gspo(row)
    return loss * len(row), [s * len(row) for s in slopes]


def slow_rloo(row):
    loss, slope = surrogate(ratio_of(row, normalised=False), row[0][3])
    return loss, [slope] * len(row)


def slow_gmpo(row):
    a = row[0][3]
    changes = [lp - old for lp, old, _, _ in row]
    bounded = [min(c, 0.2) if a > 0 else max(c, -0.2) for c in changes]
    value = -a * math.exp(sum(bounded) / len(row))
    return value, [value / len(row) if c == b else 0.0 for c, b in zip(changes, bounded, strict=True)]


def slow_taypo(row):
    d = [clamp(math.exp(lp - old) - 1, -0.3, 0.3) for lp, old, _, _ in row]
    pairs = [(s, t) for t in range(len(row)) for s in range(t)]
    gain = sum(d[t] * row[t][3] for t in range(len(row))) + 0.7 * sum(d[s] * d[t] * row[t][3] for s, t in pairs)
    slopes = []
    for u, (lp, old, _, a) in enumerate(row):
        r = math.exp(lp - old)
        others = sum(d[s] * a for s, t in pairs if t == u) + sum(d[t] * row[t][3] for s, t in pairs if s == u)
        slopes.append(-r * (a + 0.7 * others) if abs(r - 1) < 0.3 else 0.0)
    return -gain, slopes


def slow_vespo(row):
    w = math.exp(sum(lp - roll for lp, _, roll, _ in row))
    k, decay = (2.0, 3.0) if row[0][3] >= 0 else (3.0, 2.0)
    phi = w**k * math.exp(decay * (1 - w))
    return [-phi * a * lp for lp, _, _, a in row], [-phi * a for *_, a in row]


def slow_gspo_token(row):
    return [slow_gspo(row)[0]] * len(row), [len(row) * s for s in slow_gspo(row)[1]]


ROWS = {
    "gspo": (partial(gspo, clip_low=0.05, clip_high=0.1), slow_gspo),
    "gspo_token": (partial(gspo_token, clip_low=0.05, clip_high=0.1), slow_gspo_token),
    "luspo": (partial(luspo, clip_low=0.05, clip_high=0.1), slow_luspo),
    "rloo_clip": (rloo_clip, slow_rloo),
    "gmpo": (partial(gmpo, clip_low=0.2, clip_high=0.2), slow_gmpo),
    "taypo2": (partial(taypo2, eta=0.7), slow_taypo),
    "vespo": (vespo, slow_vespo),
}


def drawn(seed, one_credit):
    """Twelve rows of up to nine tokens with holes, one of them empty; float64, so that only the formula counts."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    mask = torch.rand(12, 9, generator=generator) < 0.6
    mask[4] = False
    old = -normal(12, 9).abs() - 0.05
    arrays = {
        "loss_mask": mask,
        "old_logprobs": old,
        "logprobs": (old + 0.3 * normal(12, 9)).clamp(max=-0.01).requires_grad_(),
        "rollout_logprobs": (old + 0.1 * normal(12, 9)).clamp(max=-0.01),
        "advantages": normal(12, 1).expand(12, 9) if one_credit else normal(12, 9),
        "group_ids": torch.arange(12) // 4,
    }
    return arrays, [
        [tuple(float(arrays[n][i, t].detach()) for n in NAMES) for t in range(9) if mask[i, t]] for i in range(12)
    ]


NAMES = ("logprobs", "old_logprobs", "rollout_logprobs", "advantages")


@pytest.mark.parametrize("part, slow", TOKENS.values(), ids=TOKENS)
@pytest.mark.parametrize("seed", range(4))
def test_token_losses_match_a_loop_over_tokens(part, slow, seed):
    arrays, rows = drawn(seed, one_credit=False)
    loss = call(part, Batch([], arrays))
    mask = arrays["loss_mask"]
    (slopes,) = torch.autograd.grad(torch.where(mask, loss.values, 0.0).sum(), arrays["logprobs"])
    expected = tensor([slow(*token) for row in rows for token in row], dtype=torch.float64)
    assert_close(loss.values[mask].detach(), expected[:, 0])
    assert_close(slopes[mask], expected[:, 1])


@pytest.mark.parametrize("part, slow", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("seed", range(4))
def test_answer_losses_match_a_loop_over_answers(part, slow, seed):
    arrays, rows = drawn(seed, one_credit=slow is not slow_taypo)
    loss = call(part, Batch([], arrays))
    mask = arrays["loss_mask"]
    by_token = loss.unit == "token"
    counted = torch.where(mask, loss.values, 0.0) if by_token else loss.values
    (slopes,) = torch.autograd.grad(counted.sum(), arrays["logprobs"])
    found = [slow(row) if row else ([] if by_token else 0.0, []) for row in rows]
    values = [v for of, _ in found for v in of] if by_token else [of for of, _ in found]
    assert_close(counted[mask].detach() if by_token else counted.detach(), tensor(values, dtype=torch.float64))
    assert_close(slopes[mask], tensor([s for _, of in found for s in of], dtype=torch.float64))
    assert (slopes[~mask] == 0).all()


FIRST_STEP = {
    "PPO": clipped_surrogate,
    "two-sided": two_sided_clip,
    "CISPO": cispo,
    "SAPO": sapo,
    "DPPO": dppo,
    "DPPO, KL": partial(dppo, divergence="kl"),
    "M2PO": m2po,
    "decoupled": decoupled_ppo,
    "VESPO": vespo,
    "MHPO, renormalised": partial(mhpo, renormalize=True),
}


@pytest.mark.parametrize("part", FIRST_STEP.values(), ids=FIRST_STEP)
def test_on_policy_the_gradient_is_that_of_reinforce(given, part):
    here = given["logprobs"].detach()
    first = given | {"old_logprobs": here, "rollout_logprobs": here}
    assert_close(total_of(part, first)[1], total_of(reinforce, first)[1], rtol=1e-6, atol=1e-7)


def test_on_policy_the_answer_losses_have_the_gradient_of_reinforce(given):
    first = given | {"old_logprobs": given["logprobs"].detach()}
    for part in (gspo, gmpo):
        assert_close(total_of(part, first)[1], total_of(reinforce, first, "sequence_mean")[1], rtol=1e-6, atol=1e-7)
    for part in (rloo_clip, luspo, taypo2):
        assert_close(total_of(part, first)[1], total_of(reinforce, first, "sequence_sum")[1], rtol=1e-6, atol=1e-7)


def test_gspo_with_credit_by_token_goes_the_way_of_each_token(given):
    credit = given["advantages"] * tensor([1.0, -1.0, 2.0])
    _, gradient = total_of(partial(gspo_token, clip_low=9.0, clip_high=9.0), given | {"advantages": credit})
    assert (gradient * credit)[given["loss_mask"]].max() < 0


def test_a_two_sided_clip_is_the_dual_clip(given):
    for bound in (1.3, 1.5, 4.0):
        two, dual = partial(two_sided_clip, delta=bound), partial(clipped_surrogate, dual_clip=bound)
        assert_close(total_of(two, given), total_of(dual, given))


def test_taylor_of_second_order_is_exact_for_two_tokens():
    old, new = tensor([[-0.9, -0.4]]), tensor([[-0.5, -0.8]])
    loss = taypo2(new, old, torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool), deviation_clip=None)
    assert_close(-loss.values[0], (new - old).sum().exp() - 1)
    single = partial(taypo2, loss_mask=tensor([[True, False]]), deviation_clip=None)
    assert_close(single(new, old, torch.ones(1, 2)).values, 1 - (new - old)[:, 0].exp())


def test_taylor_of_second_order_is_nearer_to_the_policys_value():
    """Every answer of four tokens out of three, weighted by the sampler: how far each order is from E_pi - E_mu."""
    generator = torch.Generator().manual_seed(0)
    logits, reward = torch.randn(4, 3, generator=generator), torch.randn(3, 3, 3, 3, generator=generator)
    answers = torch.cartesian_prod(*[torch.arange(3)] * 4)
    places = torch.arange(4)
    prize = reward[tuple(answers.T)]
    old = logits.log_softmax(-1)[places, answers]
    for size, least in ((0.1, 8.0), (0.3, 3.0)):
        new = (logits + size * torch.randn(4, 3, generator=generator)).log_softmax(-1)[places, answers]
        likely = old.sum(1).exp()
        truth = (prize * (new.sum(1).exp() - likely)).sum()
        credit = prize[:, None].expand(81, 4)
        mask = torch.ones(81, 4, dtype=torch.bool)
        errors = [
            abs(float((-taypo2(new, old, credit, mask, eta=eta, deviation_clip=None).values * likely).sum() - truth))
            for eta in (0.0, 1.0)
        ]
        assert errors[1] * least < errors[0]


def test_taylor_loses_its_gradient_past_the_clip():
    lp = tensor([[-0.1, -1.0]], requires_grad=True)
    loss = taypo2(lp, tensor([[-1.0, -1.0]]), torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool), per_token=True)
    loss.values.sum().backward()
    assert_close(loss.values.detach(), tensor([-0.15]))  # d = 0.3 and 0, over two tokens
    assert lp.grad[0, 0] == 0 and lp.grad[0, 1] == pytest.approx(-1.3 / 2)


@pytest.mark.parametrize("ratio, factor", [(0.2, 0.0037), (0.5, 0.0544), (1, 0.265062), (2, 0.3907), (5, 0.1908)])
def test_mhpo_damps_by_the_ratio(ratio, factor):
    change = tensor([[math.log(ratio)]], requires_grad=True)
    mhpo(change, torch.zeros(1, 1), -torch.ones(1, 1)).values.sum().backward()
    assert_close(change.grad, tensor([[factor]]), rtol=1e-5, atol=5e-5)


def test_mhpo_has_a_bounded_gradient_where_a_clip_has_none():
    change = torch.linspace(-20, 20, 2001)[None].requires_grad_()
    mhpo(change, torch.zeros(1, 2001), torch.ones(1, 2001)).values.sum().backward()
    assert change.grad.abs().max() <= math.exp(1.5)
    inside = (change.detach().abs() < math.log(10)) & (change.detach() != 0)
    assert (change.grad[inside] < 0).all()


def test_mhpo_renormalised_is_divided_by_its_damping_at_one(given):
    plain, full = total_of(mhpo, given), total_of(partial(mhpo, renormalize=True), given)
    assert_close(full[1] * 0.265062, plain[1], rtol=1e-5, atol=1e-7)


def test_vespo_weighs_by_one_at_the_sampler_and_less_on_both_sides():
    mask = torch.ones(1, 1, dtype=torch.bool)
    for credit in (1.0, 0.0, -1.0):
        weights = [
            float(vespo(tensor([[x]]), tensor([[0.0]]), tensor([[credit]]), mask).stats["ratio/phi"])
            for x in (-40.0, -1.0, 0.0, 1.0, 40.0)
        ]
        assert weights[2] == pytest.approx(1.0)
        assert 0 <= weights[0] < weights[1] < 1 > weights[3] > weights[4] >= 0


def test_dppo_is_finite_where_a_token_is_certain():
    lp = tensor([[0.0, -1e-9, -30.0, 0.0]], requires_grad=True)
    loss = dppo(lp, tensor([[0.0, -20.0, 0.0, -1e-9]]), tensor([[1.0, 1.0, -1.0, -1.0]]), divergence="kl")
    loss.values.sum().backward()
    assert loss.values.isfinite().all() and lp.grad.isfinite().all()
    assert_close(loss.stats["ratio/clip_fraction"], tensor([[False, True, True, False]]))


@pytest.mark.parametrize("part", [gspo, gspo_token, luspo, gmpo, rloo_clip, taypo2, vespo])
def test_empty_rows_and_rubbish_under_the_mask_give_nothing(given, part):
    mask = given["loss_mask"].clone()
    mask[3] = False
    spoiled = {n: torch.where(mask, a.detach(), torch.nan) if n in NAMES else a for n, a in given.items()}
    total, gradient = total_of(part, spoiled | {"loss_mask": mask})
    clean = {n: torch.where(mask, a.detach(), 0.0) if n in NAMES else a for n, a in given.items()}
    expected = total_of(part, clean | {"loss_mask": mask})
    assert_close(total, expected[0], rtol=0, atol=0)
    assert_close(gradient[mask], expected[1][mask], rtol=0, atol=0)
    nothing = total_of(part, spoiled | {"loss_mask": torch.zeros_like(mask)})
    assert nothing[0] == 0
