"""Numbers worked out by hand on the shared input, identities, and slow loops for objectives off the clipped path."""

import math
from functools import partial

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from llmrl.advantages.hnpg import hnpg_critic
from llmrl.objectives.ahpo import ahpo
from llmrl.objectives.alp import alp
from llmrl.objectives.apa import apa, awr
from llmrl.objectives.hnpg import hnpg, hnpg_online
from llmrl.objectives.opmd import opmd_kimi, opmd_pairwise, opmd_simple
from llmrl.objectives.p3o import p3o
from llmrl.objectives.policy import clipped_surrogate
from llmrl.objectives.rebel import rebel
from llmrl.objectives.rec import rec
from llmrl.ops.reduce import reduce_tokens, reduce_units, row_coefficients

ROLLOUT = [[-0.68, -1.05, -0.35], [-0.85, -1.3, 0], [-0.55, -0.8, -2.1], [-1.5, 0, 0]]
UNITS = {"sequence": 4, "group": 2, "pair": 2}
CHOSEN, REJECTED = [0, 2], [1, 3]
NAN = float("nan")


@pytest.fixture
def given(worked):
    return worked | {"rollout_logprobs": tensor(ROLLOUT), "centred": worked["rewards"][:, None].expand(4, 3) - 0.5}


def total(loss, given, mode="token_mean"):
    mask = given["loss_mask"]
    if loss.unit != "token":
        return reduce_units(loss.values, UNITS[loss.unit])
    return reduce_tokens(loss.values, mask, row_coefficients(mode, mask.sum(1), given["group_ids"], 3))


def solved(part, names, given, mode="token_mean"):
    """(loss, gradient of the counted log-probabilities in order, row after row)."""
    number = total(part(*(given[n] for n in names.split())), given, mode)
    number.backward()
    return number.detach(), given["logprobs"].grad[given["loss_mask"]]


def check(found, number, *gradient):
    assert_close(found[0], tensor(number), rtol=1e-5, atol=1e-6)
    if gradient:
        assert_close(found[1], tensor(gradient), rtol=1e-5, atol=1e-6)


REC = "logprobs old_logprobs advantages"
NINTH, HALF_NINTH = 1 / 9, 1 / 18


@pytest.mark.parametrize(
    "options, number, gradient",
    [
        ({}, 0.127778, [0, -NINTH, -NINTH, NINTH, 0, 0, -HALF_NINTH, -HALF_NINTH, HALF_NINTH]),
        (
            {"weight": "is"},
            0.0555852,
            [0, -0.0909701, -0.116808, 0.100537, 0, 0, -0.0584039, -0.0411566, 0.0915956],
        ),
        ({"mask": "two_side"}, 0.105556, [0, -NINTH, -NINTH, NINTH, 0, 0, -HALF_NINTH, 0, 0]),
        (
            {"clip_low": 0.6, "clip_high": 2.0},
            -0.0277778,
            [-NINTH] * 3 + [NINTH] * 2 + [-HALF_NINTH] * 3 + [HALF_NINTH],
        ),
        (
            {"mask": "none", "weight": "advantage"},
            0.668287,
            [-0.302031] * 3 + [0.0408755] * 2 + [-0.0915956] * 3 + [0.0336961],
        ),
        ({"mask": "none", "k2_coef": 0.3}, 0.00405556, None),
    ],
)
def test_rec_on_the_worked_input(given, options, number, gradient):
    check(solved(partial(rec, **options), REC, given), number, *(gradient or ()))


def test_rec_one_side_with_the_ratio_has_the_gradient_of_the_clipped_surrogate(given):
    _, gradient = solved(partial(rec, weight="is"), REC, given)
    given["logprobs"].grad = None
    assert_close(gradient, solved(clipped_surrogate, REC, given)[1])


def rec_one(lp, old, a, mask, weight, options):
    """A slow loop's body, from the formula."""
    low, high, outer_low, outer_high, temperature, k2, forward = options
    ratio = math.exp(lp - old)
    inside = 1 - low <= ratio <= 1 + high
    kept = {
        "one_side": (a >= 0 and ratio <= 1 + high) or (a <= 0 and ratio >= 1 - low),
        "two_side": inside,
        "ring": inside or (a >= 0 and ratio <= 1 - outer_low) or (a <= 0 and ratio >= 1 + outer_high),
        "none": True,
    }[mask]
    factor = {
        "none": 1.0,
        "is": ratio,
        "tis": min(max(ratio, 1 - outer_low), 1 + outer_high),
        "advantage": math.exp(a / temperature),
    }[weight]
    slope = -a * factor * kept
    return slope * lp + k2 * (lp - old) ** 2 - forward * lp, slope + 2 * k2 * (lp - old) - forward


@pytest.mark.parametrize("mask", ["one_side", "two_side", "ring", "none"])
@pytest.mark.parametrize("weight", ["none", "is", "tis", "advantage"])
def test_rec_against_a_slow_loop(mask, weight):
    generator = torch.Generator().manual_seed(3)
    lp, old, a = (torch.randn(4, 40, generator=generator, dtype=torch.float64) for _ in range(3))
    a[:, ::5] = 0.0
    options = (0.3, 0.1, 0.5, 1.5, 0.7, 0.2, 0.4)
    names = ("clip_low", "clip_high", "outer_low", "outer_high", "temperature", "k2_coef", "forward_kl_coef")
    lp.requires_grad_()
    loss = rec(lp, old, a, mask=mask, weight=weight, **dict(zip(names, options, strict=True)))
    loss.values.sum().backward()
    flat = zip(lp.detach().flatten().tolist(), old.flatten().tolist(), a.flatten().tolist(), strict=True)
    slow = tensor([rec_one(*one, mask, weight, options) for one in flat], dtype=torch.float64)
    assert_close(loss.values.detach().flatten(), slow[:, 0])
    assert_close(lp.grad.flatten(), slow[:, 1])
    plain = rec(lp, old, a, mask=mask, weight=weight, clip_low=0.3, clip_high=0.1, outer_low=0.5, outer_high=1.5)
    assert ((plain.values == 0) >= plain.stats["ratio/clip_fraction"]).all()


@pytest.mark.parametrize(
    "options, ends",
    [
        ({"mask": "none"}, [0, 1, 0]),
        ({}, [0.064, 0.928, 0.009]),
        ({"clip_low": 0.6, "clip_high": 2.0}, [0.150, 0.844, 0.007]),
        ({"mask": "none", "weight": "advantage", "temperature": 0.1}, [0.758, 0.240, 0.002]),
        ({"mask": "none", "weight": "advantage"}, [0.227, 0.773, 0]),
    ],
)
def test_what_a_mask_and_a_weight_do_to_data_of_another_policy(options, ends):
    """Three arms, all data from a policy that mostly plays the second best: 400 exact gradient steps at rate 5."""
    behaviour = tensor([0.05, 0.9, 0.05], dtype=torch.float64)
    rewards = tensor([1.0, 0.8, 0.0], dtype=torch.float64)
    credit = rewards - (behaviour * rewards).sum()
    logits = behaviour.log()
    for _ in range(400):
        logits.requires_grad_()
        loss = (behaviour * rec(logits.log_softmax(0), behaviour.log(), credit, **options).values).sum()
        logits = (logits - 5 * torch.autograd.grad(loss, logits)[0]).detach()
    assert_close(logits.softmax(0), tensor(ends, dtype=torch.float64), rtol=0, atol=6e-4)


def test_kimi_on_the_worked_input(given):
    # each row's Σ(lp - old): .05, -.7, .15, .5; slope -(r - mean) + tau drift
    found = solved(opmd_kimi, "logprobs old_logprobs centred loss_mask", given)
    check(found, 0.145625, *[-0.1125] * 3, *[-0.05] * 2, *[-0.0875] * 3, 0.25)


PAIRWISE = "logprobs old_logprobs rewards loss_mask group_ids"


def test_pairwise_on_the_worked_input(given):
    check(solved(partial(opmd_pairwise, tau=0.5), PAIRWISE, given), 0.221406)


def test_pairwise_is_the_sum_over_pairs_whatever_the_sizes_of_the_groups():
    generator = torch.Generator().manual_seed(0)
    groups = tensor([5, 2, 5, 9, 5, 2])
    rewards = torch.randn(6, generator=generator)
    lp, old = (torch.randn(6, 3, generator=generator).requires_grad_() for _ in range(2))
    mask = torch.ones(6, 3, dtype=torch.bool)
    loss = opmd_pairwise(lp, old.detach(), rewards, mask, groups, tau=0.7)
    a = rewards - 0.7 * (lp - old.detach()).sum(1)
    expected = torch.zeros(())
    for group in (2, 5, 9):
        members = (groups == group).nonzero().flatten().tolist()
        pairs = [(a[i] - a[j]) ** 2 for i in members for j in members if i < j]
        expected = expected + sum(pairs, torch.zeros(())) / len(members) ** 2
    assert loss.unit == "group"
    assert_close(loss.values.sum(), expected)
    found, wanted = (torch.autograd.grad(x, lp, retain_graph=True)[0] for x in (loss.values.sum(), expected))
    assert_close(found, wanted)
    assert loss.values[3] == 0  # a group of one has no pair


def test_pairwise_at_the_old_policy_has_the_gradient_of_centred_reinforce(given):
    given["old_logprobs"] = given["logprobs"].detach()
    _, gradient = solved(partial(opmd_pairwise, tau=0.3), PAIRWISE, given)
    slope = -(2 * 0.3 / 2) * given["centred"] / 2  # K = 2 answers, two prompts
    assert_close(gradient, slope[given["loss_mask"]])


@pytest.mark.parametrize(
    "part, names", [(opmd_kimi, "logprobs old_logprobs centred loss_mask"), (opmd_pairwise, PAIRWISE)]
)
def test_a_row_without_a_token_counts_for_nothing(given, part, names):
    filled = [given[n] for n in names.split()]
    mask = given["loss_mask"].clone()
    mask[1] = False
    empty = part(*(mask if n == "loss_mask" else given[n] for n in names.split()))
    assert empty.values[1] == 0
    if part is opmd_pairwise:  # its sibling is then alone
        assert empty.values[0] == 0 and (part(*filled).values[:2] > 0).all()


def test_simple_opmd_on_the_worked_input(given):
    check(solved(opmd_simple, "logprobs advantages", given), -0.0138889)


ALP = "logprobs rollout_logprobs advantages loss_mask"


@pytest.mark.parametrize(
    "level, number, gradient",
    [
        (
            "token",
            -0.271627,
            [-0.133024, -0.0956342, -0.116808, 0.105692, 0, 0, -0.0613984, 0, 0.0828791],
        ),
        ("sequence", -0.313772, [-0.120365] * 3 + [0] * 5 + [0.0828791]),
    ],
)
def test_alp_on_the_worked_input(given, level, number, gradient):
    check(solved(partial(alp, level=level), ALP, given), number, *gradient)


def test_alp_per_token_is_the_surrogate_with_the_engine_as_the_old_policy(given):
    expected = solved(
        partial(clipped_surrogate, clip_high=0.28, dual_clip=3.0), "logprobs rollout_logprobs advantages", given
    )
    given["logprobs"].grad = None
    found = solved(partial(alp, level="token"), ALP, given)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_alp_geometric_is_the_mean_over_the_answer(given):
    loss = alp(*(given[n] for n in ALP.split()), level="geometric", clip_low=9.0, clip_high=9.0, dual_clip=None)
    change = given["logprobs"].detach() - given["rollout_logprobs"]
    for row in range(4):
        mask = given["loss_mask"][row]
        assert_close(loss.values[row][mask], -given["advantages"][row][mask] * change[row][mask].mean().exp())


def test_apa_on_the_worked_input(given):
    found = solved(apa, "logprobs ref_logprobs advantages", given)
    check(found, 0.571111, -0.155556, -0.288889, -0.2, 0.177778, NINTH, -0.0444444, -0.0666667, -0.155556, 0.177778)


def test_awr_on_the_worked_input(given):
    number, gradient = solved(awr, "logprobs advantages", given)
    assert_close(number, tensor(1.23639), rtol=1e-5, atol=1e-6)
    assert_close(gradient, -given["advantages"].exp()[given["loss_mask"]] / 9)


def test_awr_weight_has_a_cap():
    loss = awr(tensor([[-1.0, -1.0]]), tensor([[5.0, 0.0]]), temperature=0.5, max_weight=3.0)
    assert_close(loss.values, tensor([[3.0, 1.0]]))


def test_both_fits_end_at_the_tilted_policy():
    """Six arms, exact expectations under the initial policy; the baseline tau log E exp(A / tau) makes the tilt add up."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(6, generator=generator, dtype=torch.float64).log_softmax(0)
    credit = torch.randn(6, generator=generator, dtype=torch.float64)
    soft = credit - 0.5 * (start + credit / 0.5).logsumexp(0)
    tilt = (start + credit / 0.5).log_softmax(0)
    for part, names in ((apa, (start, soft)), (awr, (soft,))):
        logits = start.clone().requires_grad_()
        optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-14)

        def closure(logits=logits, part=part, names=names, optimizer=optimizer):
            optimizer.zero_grad()
            loss = (start.exp() * part(logits.log_softmax(0), *names, temperature=0.5).values).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        assert (logits.detach().log_softmax(0).exp() - tilt.exp()).abs().max() < 1e-3


def paired(part, given, names, **options):
    arrays = [given[n][rows] for n in names.split() for rows in (CHOSEN, REJECTED)]
    return part(*arrays, **options)


P3O = "logprobs old_logprobs ref_logprobs rewards loss_mask"


def test_p3o_joint_on_the_worked_input(given):
    number = total(paired(p3o, given, P3O, clip_range=0.25), given)
    number.backward()
    check(
        (number.detach(), given["logprobs"].grad[given["loss_mask"]]), -0.0375873, *[0] * 5, *[-0.478885] * 3, 0.478885
    )


def test_p3o_separate_on_the_worked_input(given):
    number = total(paired(p3o, given, P3O, clip_range=0.25, clip="separate"), given)
    number.backward()
    tokens, pairs = 9, 2
    share = 2 * pairs / tokens  # worked out per token of both sides; here half a sum per pair
    gradient = given["logprobs"].grad[given["loss_mask"]]
    expected = [*[-0.0556849] * 3, 0.0556849, 0, 0, -0.212838, -0.212838, 0.212838]
    check((number.detach() * share, gradient * share), 0.277988, *expected)


@pytest.mark.parametrize("clip", ["joint", "separate"])
def test_p3o_sees_differences_of_reward_only(given, clip):
    def gradient(shift):
        doubled = {n: x.detach().double() if x.is_floating_point() else x for n, x in given.items()}
        doubled["logprobs"].requires_grad_()
        doubled["rewards"] += shift
        paired(p3o, doubled, P3O, clip=clip).values.sum().backward()
        return doubled["logprobs"].grad

    assert_close(gradient(tensor([100.0, 100, -100, -100])), gradient(0.0), rtol=1e-10, atol=1e-12)


def test_p3o_joint_and_separate_agree_while_nothing_is_clipped(given):
    gradients = []
    for clip in ("joint", "separate"):
        given["logprobs"].grad = None
        paired(p3o, given, P3O, clip=clip, clip_range=9.0).values.sum().backward()
        gradients.append(given["logprobs"].grad)
    assert_close(gradients[0], gradients[1])


def test_p3o_with_equal_rewards_moves_back_to_the_reference(given):
    given["rewards"] = torch.ones(4)
    given["old_logprobs"] = given["logprobs"].detach()
    paired(p3o, given, P3O).values.sum().backward()
    gap = (given["logprobs"] - given["ref_logprobs"]).detach().where(given["loss_mask"], tensor(0.0)).sum(1)
    for one, other in zip(CHOSEN, REJECTED, strict=True):
        assert_close(given["logprobs"].grad[one, 0], 0.5 * 0.05 * (gap[one] - gap[other]))


def sums(given, name):
    return given[name].where(given["loss_mask"], tensor(0.0)).sum(1)


def test_rebel_on_the_worked_input(given):
    seen = {"seq": sums(given, "logprobs"), "old": sums(given, "old_logprobs"), "rewards": given["rewards"]}
    number = total(paired(rebel, seen, "seq old rewards"), given)
    number.backward()
    check(
        (number.detach(), given["logprobs"].grad[given["loss_mask"]]),
        0.9425,
        *[-0.25] * 3,
        *[0.25] * 2,
        *[-1.35] * 3,
        1.35,
    )


def test_rebel_over_all_pairs_of_arms_is_a_step_of_natural_policy_gradient():
    generator = torch.Generator().manual_seed(1)
    old = torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(0)
    rewards = torch.randn(5, generator=generator, dtype=torch.float64)
    one, other = torch.cartesian_prod(torch.arange(5), torch.arange(5)).T
    logits = old.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-14, tolerance_change=1e-16)

    def closure():
        optimizer.zero_grad()
        lp = logits.log_softmax(0)
        loss = rebel(lp[one], lp[other], old[one], old[other], rewards[one], rewards[other], eta=0.8).values.mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert_close(logits.detach().log_softmax(0), (old + 0.8 * rewards).log_softmax(0), rtol=0, atol=1e-6)


def test_hnpg_targets_look_one_token_ahead():
    # V = Σ π q = .3, .2, .78; targets r + V' = .2, .78, 1 for the tokens taken, whose q are .2, .1, .9
    q = tensor([[0.2, 0.4], [0.5, 0.1], [0.9, 0.3]])
    policy = tensor([[0.5, 0.5], [0.25, 0.75], [0.8, 0.2]])
    values = (policy * q).sum(1)
    assert_close(values, tensor([0.3, 0.2, 0.78]))
    taken = tensor([[0.2, 0.1, 0.9]], requires_grad=True)
    mask = torch.ones(1, 3, dtype=torch.bool)
    loss = hnpg(taken, values[None], torch.zeros(1, 3), tensor([[0.0, 0, 1]]), mask)
    loss.values.sum().backward()
    assert_close(loss.values.detach(), (tensor([[0.2, 0.1, 0.9]]) - tensor([[0.2, 0.78, 1.0]])) ** 2)
    assert_close(taken.grad, 2 * (tensor([[0.2, 0.1, 0.9]]) - tensor([[0.2, 0.78, 1.0]])))


def test_hnpg_bridges_what_does_not_count():
    mask = tensor([[True, False, True]])
    loss = hnpg(
        torch.zeros(1, 3), tensor([[0.3, NAN, 0.78]]), torch.zeros(1, 3), tensor([[0.0, NAN, 1.0]]), mask, gamma=0.5
    )
    assert_close(loss.values[mask], tensor([0.39**2, 1.0]))


def test_hnpg_actor_and_critic_have_their_own_weights():
    values, credit, mask = torch.zeros(1, 1), tensor([[0.7]]), torch.ones(1, 1, dtype=torch.bool)
    arrays = (tensor([[2.0]]), values, credit, tensor([[1.0]]), mask)
    assert_close(hnpg(*arrays, value_coef=3.0, actor_coef=2.0).values, tensor([[3 * 1.0 - 2 * 0.7]]))
    assert_close(hnpg_online(tensor([[2.0]]), tensor([[1.5]]), value_coef=4.0).values, tensor([[1.0]]))


def test_hnpg_credit_is_gae_and_its_returns_are_what_was_earned():
    rewards, values = tensor([[0.0, 0, 1]]), tensor([[0.2, 0.4, 0.5]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    credit = hnpg_critic(rewards, values, mask, gae_lambda=0.95, whiten=False)
    assert_close(credit.advantages, tensor([[0.74625, 0.575, 0.5]]))
    assert_close(credit.returns, torch.ones(1, 3))
    plain = hnpg_critic(rewards, values, mask, gamma=0.5, gae_lambda=1.0, whiten=False)
    assert_close(plain.returns, tensor([[0.25, 0.5, 1.0]]))
    assert_close(plain.advantages, plain.returns - values)
    assert hnpg_critic(rewards, values, torch.zeros_like(mask)).advantages.eq(0).all()


@pytest.mark.parametrize("gates, extra", [((0.0, 0.0), 0.0), ((1.0, 1.0), 0.758333), ((0.0, 1.0), 0.175)])
def test_ahpo_adds_the_experts_likelihood_where_the_gate_is_open(given, gates, extra):
    # NLL of the two traces 3.5/3 and .7/2, averaged over the two prompts
    online = total(clipped_surrogate(*(given[n] for n in REC.split())), given, "sequence_mean")
    assert_close(online.detach(), tensor(0.038691), rtol=1e-5, atol=1e-6)
    expert = {
        "logprobs": tensor([[-1.0, -2.0, -0.5], [-0.3, -0.4, NAN]], requires_grad=True),
        "loss_mask": tensor([[True, True, True], [True, True, False]]),
        "group_ids": tensor([0, 1]),
    }
    loss = ahpo(expert["logprobs"], tensor(gates)[:, None].expand(2, 3))
    found = total(loss, expert, "sequence_mean")
    assert_close(found.detach(), tensor(extra), rtol=1e-5, atol=1e-6)
    found.backward()
    assert (expert["logprobs"].grad[tensor(gates) == 0] == 0).all()
