"""Divergences, penalties with a memory, and the numbers worked out for them."""

import math

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from llmrl.objectives.policy import clipped_surrogate
from llmrl.ops.reduce import reduce_tokens, row_coefficients
from llmrl.regularizers.adaptive_kl import AdaptiveKl
from llmrl.regularizers.dph import dph, dph_fresh
from llmrl.regularizers.entropy import AdaptiveEntropy
from llmrl.regularizers.fixpo import FixpoPenalty, SampledFixpoPenalty
from llmrl.regularizers.kl import kl_full, kl_k1, kl_k2, kl_k3, kl_k3_corrected, kl_old
from llmrl.regularizers.ptx import ptx

DIVERGENCES = ["forward_kl", "js", "alpha", "js_definition"]


def token_mean(values, mask, groups):
    return reduce_tokens(values, mask, row_coefficients("token_mean", mask.sum(1), groups, 3))


def solved(part, worked, *names, **options):
    """(token mean, gradient of the counted log-probabilities) on the worked input."""
    loss = part(*(worked[n] for n in names), **options)
    total = token_mean(loss.values, worked["loss_mask"], worked["group_ids"])
    (gradient,) = torch.autograd.grad(total, worked["logprobs"])
    return total.detach(), gradient[worked["loss_mask"]]


@pytest.mark.parametrize(
    "divergence, number", zip(DIVERGENCES, [0.0401067, 0.019805, 0.0395747, 0.00983263], strict=True)
)
def test_dph_on_the_worked_input(worked, divergence, number):
    found = solved(dph, worked, "logprobs", "ref_logprobs", divergence=divergence)
    assert_close(found[0], tensor(number), rtol=1e-5, atol=1e-7)
    if divergence == "forward_kl":
        first = [0.0388732, -0.028798, 0.0116857, -0.020141, -0.0437188]
        expected = tensor([*first, 0.0388732, 0.0246003, -0.020141, 0.0388732])
        assert_close(found[1], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "u, numbers", [(0.3, [0.503973, 0.198826, 0.364513, 0.0807829]), (3.0, [0.901388, 0.523248, 1.1986, 0.306853])]
)
def test_generators_of_the_divergences(u, numbers):
    found = [dph(tensor([[math.log(u)]]), torch.zeros(1, 1), divergence=d).values.item() for d in DIVERGENCES]
    assert found == pytest.approx(numbers, rel=1e-5)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_generators_are_zero_with_slope_zero_at_the_reference_and_nowhere_below(divergence):
    at = tensor([[-1.0, -0.3]], dtype=torch.float64, requires_grad=True)
    loss = dph(at, at.detach(), divergence=divergence)
    loss.values.sum().backward()
    assert loss.values.abs().max() < 1e-15 and at.grad.abs().max() < 1e-15
    x = torch.linspace(-25, 25, 101, dtype=torch.float64)
    values = dph(x, torch.zeros_like(x), divergence=divergence).values
    assert values.isfinite().all() and (values >= 0).all()


def exact_policies():
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(7, generator=generator, dtype=torch.float64).log_softmax(0) for _ in range(2))


def kl_of(p, q):
    return (p.exp() * (p - q)).sum()


def test_expected_generators_are_the_divergences_that_they_are_named_for():
    policy, reference = exact_policies()
    mixture = torch.logaddexp(policy, reference) - math.log(2)

    def expected(divergence, **options):
        return (reference.exp() * dph(policy, reference, divergence=divergence, **options).values).sum()

    assert_close(expected("forward_kl"), kl_of(reference, policy))
    assert_close(expected("js"), kl_of(policy, mixture) + kl_of(reference, mixture))
    assert_close(expected("js_definition"), kl_of(reference, mixture))
    # on fresh rows: tokens of the policy itself
    assert_close((policy.exp() * dph_fresh(policy, reference, kl_coef=1.0).values).sum(), kl_of(policy, mixture))
    assert_close(expected("alpha", alpha=1 - 1e-6), expected("forward_kl"), rtol=1e-4, atol=0)


def test_mixture_is_half_the_policy_however_far_the_reference_is():
    # where pi is far above ref the mixture is pi / 2: d = ln 2, and k3 = 1/2 - 1 + ln 2, with gradient 0
    x = tensor([[10.0, 30.0, 60.0]], dtype=torch.float64, requires_grad=True)
    values = dph_fresh(x, torch.zeros_like(x), kl_coef=1.0).values
    assert_close(values, torch.full_like(values, math.log(2) - 0.5), rtol=0, atol=1e-4)
    (gradient,) = torch.autograd.grad(values.sum(), x)
    assert gradient.abs().max() < 1e-4


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_alpha_at_its_limits_is_refused(alpha):
    with pytest.raises(ValueError, match="forward_kl"):
        dph(torch.zeros(1, 1), torch.zeros(1, 1), divergence="alpha", alpha=alpha)


def test_dph_total_on_the_worked_input(worked):
    # rows 1 and 2 are explored, rows 3 and 4 hold stored answers; each part over its own tokens
    fresh, stored = worked["loss_mask"].clone(), worked["loss_mask"].clone()
    fresh[2:], stored[:2] = False, False
    surrogate = clipped_surrogate(
        worked["logprobs"], worked["old_logprobs"], worked["advantages"], clip_high=0.28, dual_clip=3.0
    )
    held = dph(worked["logprobs"], worked["ref_logprobs"])
    parts = [token_mean(x.values, mask, worked["group_ids"]) for x, mask in ((surrogate, fresh), (held, stored))]
    assert_close((parts[0] + 0.01 * parts[1]).detach(), tensor(-0.276964), rtol=1e-5, atol=1e-6)


def test_k1_and_its_gradient_on_the_worked_input(worked):
    number, gradient = solved(kl_k1, worked, "logprobs", "ref_logprobs", kl_coef=1.0)
    assert abs(number) < 1e-7
    assert_close(gradient, torch.full((9,), 1 / 9))


def test_straight_through_has_the_value_of_k3_and_the_gradient_of_k2(worked):
    pair = ("logprobs", "ref_logprobs")
    number, gradient = solved(kl_k3, worked, *pair, kl_coef=1.0, straight_through=True)
    assert_close(number, tensor(0.0430454), rtol=1e-5, atol=1e-6)
    assert_close(number, solved(kl_k3, worked, *pair, kl_coef=1.0)[0])
    assert_close(gradient, solved(kl_k2, worked, *pair, kl_coef=1.0)[1])


def test_corrected_k3_on_the_worked_input(worked):
    number, _ = solved(kl_k3_corrected, worked, "logprobs", "old_logprobs", "ref_logprobs", kl_coef=1.0)
    assert_close(number, tensor(0.040054), rtol=1e-5, atol=1e-6)


def test_corrected_k3_is_unbiased_in_value_and_gradient_for_tokens_of_the_old_policy():
    old, reference = exact_policies()
    logits = (old + 0.4 * torch.arange(7)).requires_grad_()
    policy = logits.log_softmax(0)
    estimate = (old.exp() * kl_k3_corrected(policy, old, reference, kl_coef=1.0).values).sum()
    truth = kl_of(policy, reference)
    assert_close(estimate, truth)
    found, wanted = (torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (estimate, truth))
    assert_close(found, wanted)
    uncorrected = (old.exp() * kl_k3(policy, reference, kl_coef=1.0).values).sum()
    assert (uncorrected - truth).abs() > 0.01


def test_penalties_over_the_vocabulary_are_scaled_and_nothing_else():
    given = tensor([[0.5, 0.0]])
    assert_close(kl_full(given, kl_coef=0.2).values, tensor([[0.1, 0.0]]))
    loss = kl_old(given)
    assert torch.equal(loss.values, given) and torch.equal(loss.stats["trust/kl"], given)


def test_ptx_is_likelihood_with_a_weight():
    assert_close(ptx(tensor([[-0.5, -2.0]]), ptx_coef=0.1).values, tensor([[0.05, 0.2]]))


@pytest.mark.parametrize("distance, expected", [(9.0, 0.100512), (6.3, 0.100128), (1.0, 0.099488), (6.0, 0.1)])
def test_the_controller_follows_the_distance(distance, expected):
    part = AdaptiveKl()
    state = part.init()
    assert part.observe(state, {"kl/answer": distance, "rows": 256.0})["kl_coef"] == pytest.approx(expected, abs=1e-9)
    assert state == {"kl_coef": 0.1}


def test_the_controlled_penalty_measures_whole_answers(worked):
    part = AdaptiveKl(kl_coef=0.5)
    here = [worked[n] for n in ("logprobs", "ref_logprobs")]
    here[1] = here[1].masked_fill(~worked["loss_mask"], math.nan)
    loss = part.apply({"kl_coef": 2.0}, *here, worked["loss_mask"])
    assert_close(loss.values[worked["loss_mask"]], kl_k2(*here, kl_coef=2.0).values[worked["loss_mask"]])
    assert_close(loss.stats["kl/answer"], tensor([0.1, -0.7, 0.3, 0.3]))


def test_the_bonus_comes_on_when_the_entropy_falls():
    part = AdaptiveEntropy(entropy_coef=0.1, target=0.5, delta=0.02, least=0.09, most=0.13)
    state, seen = part.init(), []
    entropy = tensor([[1.0, 2.0]])
    for mean in (0.8, 0.5, 0.4, 0.3, 0.6, 0.7, 0.2):
        seen.append(part.apply(state, entropy).values[0, 1].item())
        state = part.observe(state, {"entropy/mean": mean})
    # coefficient after each: .09 (floor), .11, .13, .13 (ceiling), .11, .09, .11; used only after a mean at or below .5
    assert seen == pytest.approx([0, 0, -0.22, -0.26, -0.26, 0, 0])
    assert state == pytest.approx({"entropy_coef": 0.11, "applied": 0.11})


def test_entropy_of_the_worked_logits():
    spread = tensor([1.0, 0.0, -1.0]).log_softmax(0)
    assert_close(-(spread.exp() * spread).sum(), tensor(0.832396))


@pytest.mark.parametrize("divergences, expected", [([0.3, 0.05], 1.01), ([0.05, 0.02], 0.99)])
def test_beta_of_fixpo_on_the_worked_input(divergences, expected):
    part = FixpoPenalty()
    loss = part.apply(part.init(), tensor([divergences]))
    assert_close(loss.values, tensor([divergences]))
    means = {"fixpo/kl": sum(divergences) / 2, "fixpo/kl/max": max(divergences)}
    assert part.observe(part.init(), means)["beta"] == pytest.approx(expected, abs=1e-6)


def test_the_sampled_penalty_of_fixpo_is_the_divergence_in_the_mean():
    old, logits = tensor([0.2, -0.3, 0.5]).double().log_softmax(0), tensor([1.0, 0.4, -0.9]).double().requires_grad_()
    now = logits.log_softmax(0)
    part, exact = SampledFixpoPenalty(beta=2.0), FixpoPenalty(beta=2.0)
    drawn = part.apply(part.init(), now, old)  # every token once, weighed by how often the old policy draws it
    whole = exact.apply(exact.init(), (old.exp() * (old - now)).sum()[None])
    mean = (old.exp() * drawn.values).sum()
    assert_close(mean, whole.values[0])
    assert_close(drawn.stats["fixpo/kl"] * 2.0, drawn.values.detach())
    # r - 1 - log r at r = 1.5: 0.5 - 0.405465
    assert_close(part.apply(part.init(), tensor(1.5).log(), tensor(0.0)).values, tensor(2 * 0.094535))
    slopes = [torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (mean, whole.values[0])]
    assert_close(*slopes)


@pytest.mark.parametrize("measure", ["max", "mean"])
def test_beta_of_fixpo_is_stepped_as_torch_does_it(measure):
    part = FixpoPenalty(measure=measure, beta=0.03)
    beta = torch.nn.Parameter(tensor(0.03, dtype=torch.float64))
    optimizer, state = torch.optim.Adam([beta], lr=0.01), part.init()
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        far = 0.2 * torch.rand(2, generator=generator, dtype=torch.float64)
        number = far.max() if measure == "max" else far.mean()
        optimizer.zero_grad()
        (beta * (0.2 - 2.0 * number)).backward()
        optimizer.step()
        beta.data.clamp_(min=0)
        state = part.observe(state, {"fixpo/kl": float(far.mean()), "fixpo/kl/max": float(far.max())})
        assert state["beta"] == pytest.approx(float(beta.detach()), abs=1e-9)


@pytest.mark.parametrize("part", [AdaptiveKl(), AdaptiveEntropy(), FixpoPenalty()])
def test_a_step_in_which_nothing_counted_teaches_nothing(part):
    assert part.observe(part.init(), {"rows": 0.0, "loss": 0.0}) == part.init()
