"""Divergences over the whole vocabulary to a policy that is only there as stored hidden states and a head."""

from dataclasses import replace

import pytest
import torch
from test_forward import ARCHITECTURES, ROWS, WIDTH, architecture, assert_gradients_close, gradients  # noqa: F401 - a fixture is among them
from torch import nn, tensor
from torch.testing import assert_close

from llmrl.ops import logprobs
from llmrl.ops.logprobs import kl_statistics
from llmrl.policy.forward import LogitHead, PolicyModule, StoredStates

HIDDEN, VOCABULARY, TOKENS = 6, 11, 23
DIRECTIONS = ["forward", "reverse"]
EVERYWHERE = {"lora": {"rank": 4, "targets": "all-linear"}}
HEAD = {"lora": {"rank": 4, "targets": ["lm_head", "q_proj"]}}


def by_definition(logits, other, direction):
    """KL by its definition: reverse from the first, forward from the other."""
    p, q = logits.softmax(-1), other.softmax(-1).detach()
    return (p * (p / q).log()).sum(-1) if direction == "reverse" else (q * (q / p).log()).sum(-1)


@pytest.fixture
def given():
    generator = torch.Generator().manual_seed(0)
    hidden, other = (torch.randn(TOKENS, HIDDEN, generator=generator) for _ in range(2))
    temperatures = 0.5 + torch.rand(TOKENS, generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        heads = nn.Linear(HIDDEN, VOCABULARY), nn.Linear(HIDDEN, VOCABULARY)
    return hidden.requires_grad_(), heads[0], other.requires_grad_(), heads[1], temperatures


def test_worked_by_hand():
    # p = (3/4, 1/4), q = (1/2, 1/2): KL(p||q) = 3/4 ln 3/2 + 1/4 ln 1/2, KL(q||p) = 1/2 ln 2/3 + 1/2 ln 2
    p, q = tensor([[3.0, 1.0]]).log().requires_grad_(), torch.zeros(1, 2)
    same = (lambda h: h, q, lambda h: h, torch.ones(1), 2)
    reverse, forward = kl_statistics(p, *same, "reverse"), kl_statistics(p, *same, "forward")
    assert_close(reverse, tensor([0.130812]), rtol=0, atol=1e-6)
    assert_close(forward, tensor([0.143841]), rtol=0, atol=1e-6)
    # d reverse / d logit_k = p_k (ln p_k/q_k - KL), d forward / d logit_k = p_k - q_k
    assert_close(torch.autograd.grad(reverse, p)[0], tensor([[0.205990, -0.205990]]), rtol=0, atol=1e-6)
    assert_close(torch.autograd.grad(forward, p)[0], tensor([[0.25, -0.25]]))


def test_worked_steps_back_to_a_table():
    """FixPO's worked fix-up phase: old logits 0, bound .2; steps of half of beta on the mean divergence, Adam's on beta."""
    logits = tensor([[2.0, 0.0, -1.0], [0.3, 0.0, 0.0]], requires_grad=True)
    beta = torch.ones((), requires_grad=True)
    adam, steps = torch.optim.Adam([beta], lr=0.01), 0

    def divergence():
        return kl_statistics(logits, lambda h: h, torch.zeros(2, 3), lambda h: h, torch.ones(2), 3, "forward")

    while (now := divergence()).max() > 0.2:
        (slope,) = torch.autograd.grad(now.mean(), logits)
        with torch.no_grad():
            logits -= 0.5 * beta * slope
        adam.zero_grad()
        (beta * (0.2 - 2 * now.max().detach())).backward()
        adam.step()
        steps += 1
    assert steps == 9
    assert beta.item() == pytest.approx(1.08223, abs=1e-5)
    expected = tensor([[1.078651, 0.329362, -0.408013], [0.18614, 0.05693, 0.05693]])
    assert_close(logits.detach(), expected, rtol=0, atol=1e-5)
    assert_close(divergence().detach(), tensor([0.176644, 0.001881]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kept", [0, 1 << 24])
@pytest.mark.parametrize("elements", [1, 4 * VOCABULARY + 3, TOKENS * VOCABULARY, 1 << 22])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_value_and_gradient_are_the_definitions(given, direction, elements, kept, monkeypatch):
    monkeypatch.setattr(logprobs, "KEPT_ELEMENTS", kept)
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", elements)
    monkeypatch.setattr(logprobs, "LEAST_ROWS", 1)
    hidden, head, other, other_head, temperatures = given
    found = kl_statistics(*given, VOCABULARY, direction)
    expected = by_definition(head(hidden) / temperatures[:, None], other_head(other) / temperatures[:, None], direction)
    assert_close(found, expected)
    weights = torch.linspace(-1, 2, TOKENS)
    inputs = [hidden, *head.parameters(), other, *other_head.parameters()]
    both = [torch.autograd.grad((weights * n).sum(), inputs, allow_unused=True) for n in (found, expected)]
    assert_close(both[0][:3], both[1][:3], rtol=1e-4, atol=1e-5)
    assert all(g is None for g in both[0][3:])  # the other one is only looked at


@pytest.mark.parametrize("kept", [0, 1 << 24])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_second_derivatives(given, direction, kept, monkeypatch):
    """What a conjugate-gradient step multiplies with, against autograd on the definition."""
    monkeypatch.setattr(logprobs, "KEPT_ELEMENTS", kept)
    hidden, head, other, other_head, temperatures = given
    vector = torch.linspace(-1, 1, hidden.numel()).reshape(hidden.shape)

    def product(number):
        (slope,) = torch.autograd.grad(number.sum(), hidden, create_graph=True)
        return torch.autograd.grad((slope * vector).sum(), hidden)[0]

    found = product(kl_statistics(*given, VOCABULARY, direction))
    expected = product(
        by_definition(head(hidden) / temperatures[:, None], other_head(other) / temperatures[:, None], direction)
    )
    assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_equal_distributions_are_exactly_zero_apart(given, direction):
    hidden, head, _, _, temperatures = given
    found = kl_statistics(hidden, head, hidden.detach(), head, temperatures, VOCABULARY, direction)
    assert torch.equal(found, torch.zeros(TOKENS))
    slopes = torch.autograd.grad(found.sum(), [hidden, *head.parameters()])
    assert not any(bool(slope.any()) for slope in slopes)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_no_logits_are_kept_for_the_backward_pass(given, direction, monkeypatch):
    monkeypatch.setattr(logprobs, "KEPT_ELEMENTS", TOKENS * VOCABULARY - 1)
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 5 * VOCABULARY)
    monkeypatch.setattr(logprobs, "LEAST_ROWS", 1)
    kept, sizes = [], []
    for head in (given[1], given[3]):
        head.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        kl_statistics(*given, VOCABULARY, direction)
    assert not [shape for shape in kept if shape[-1:] == (VOCABULARY,) and len(shape) == 2]
    assert max(sizes) == 5


def test_no_token_at_all(given):
    hidden, head, other, other_head, temperatures = given
    found = kl_statistics(hidden[:0], head, other[:0], other_head, temperatures[:0], VOCABULARY, "reverse")
    assert found.shape == (0,) and found.requires_grad


def stored(policy, rows=ROWS, **options):
    """Of a pass, as the trainer makes it."""
    with torch.no_grad():
        states = policy.statistics(rows, WIDTH, states=True, **options)["states"]
    return StoredStates(rows.by_row(states.cpu()), rows.masks, policy.head())


def loop(model, other, rows=ROWS):
    """(KL(other || model), KL(model || other)) by one whole forward pass of both a counted token."""
    out = [[[torch.zeros(())] * WIDTH for _ in rows.contexts] for _ in range(2)]
    for i, (context, response) in enumerate(zip(rows.contexts, rows.responses, strict=True)):
        for t in range(len(response)):
            if rows.masks[i][t]:
                ids = tensor([[*context, *response[:t]]])
                logits, theirs = (
                    run(input_ids=ids, use_cache=False).logits[0, -1] / rows.temperatures[i] for run in (model, other)
                )
                for place, direction in enumerate(DIRECTIONS):
                    out[place][i][t] = by_definition(logits, theirs, direction)
    return [torch.stack([torch.stack(row) for row in one]) for one in out]


def test_a_policy_against_another(make_policy):
    policy, reference = make_policy(), make_policy(seed=1)
    both = stored(reference)
    found = policy.statistics(ROWS, WIDTH, logprobs=False, old=both, ref=both)
    assert found.keys() == {"old_kl", "ref_kl"}
    expected = loop(policy.model, reference.model)
    assert_close((found["old_kl"], found["ref_kl"]), tuple(expected), rtol=1e-4, atol=1e-5)
    assert_gradients_close(
        gradients(policy.module, [found["old_kl"], 3 * found["ref_kl"]]),
        gradients(policy.module, [expected[0], 3 * expected[1]]),
    )
    mask = tensor([[*m, *(False,) * (WIDTH - len(m))] for m in ROWS.masks])
    assert (found["old_kl"][~mask] == 0).all() and (found["old_kl"][mask] > 0).all()


def test_the_policy_itself_as_the_updates_began(make_policy):
    policy = make_policy()  # its head is tied to the embeddings and trained with them
    before = stored(policy)
    found = policy.statistics(ROWS, WIDTH, old=before, ref=before)
    assert torch.equal(found["old_kl"], torch.zeros(6, WIDTH)) and torch.equal(found["ref_kl"], torch.zeros(6, WIDTH))
    assert not any(bool(g.any()) for g in gradients(policy.module, [found["old_kl"], found["ref_kl"]]))
    other = make_policy()
    with torch.no_grad():
        for _, parameter in policy.trainable():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    moved = policy.statistics(ROWS, WIDTH, old=before)["old_kl"]
    assert_close(moved, loop(policy.model, other.model)[0], rtol=1e-4, atol=1e-5)
    assert moved.max() > 1e-3


@pytest.mark.parametrize("config", [EVERYWHERE, HEAD], ids=["every layer", "the head too"])
def test_adapters_off_are_the_reference(make_policy, config):
    policy, plain = make_policy(config=config), make_policy(config=config)
    with policy.reference():
        reference = stored(policy)
    with plain.reference():
        expected = loop(policy.model, plain.model)[1]
    assert expected.max() > 0.01
    assert_close(policy.statistics(ROWS, WIDTH, ref=reference)["ref_kl"], expected, rtol=1e-4, atol=1e-5)
    before = stored(policy)
    with torch.no_grad():
        for _, parameter in policy.trainable():
            parameter += 0.1
    found = policy.statistics(ROWS, WIDTH, old=before, ref=reference)
    assert_close(found["old_kl"], loop(policy.model, make_policy(config=config).model)[0], rtol=1e-4, atol=1e-5)


def test_a_head_is_copied_only_where_it_can_change(make_policy):
    whole, adapted, frozen = make_policy(), make_policy(config={"lora": {"rank": 4}}), make_policy()
    frozen.module.requires_grad_(False)
    assert whole.head().linear is not whole.model.lm_head
    assert frozen.head().linear is frozen.model.lm_head
    assert adapted.head().linear is LogitHead(adapted.model.get_base_model()).linear


def test_rows_may_be_taken_and_tokens_dropped_later(make_policy):
    policy, before = make_policy(), stored(make_policy(seed=1))
    whole = policy.statistics(ROWS, WIDTH, old=before)["old_kl"]
    chosen = [4, 0]
    fewer = replace(
        ROWS,
        contexts=[ROWS.contexts[i] for i in chosen],
        responses=[ROWS.responses[i] for i in chosen],
        masks=[(False, False, True, False, True), (True,) * 3 + (False,) * 5],
        temperatures=[ROWS.temperatures[i] for i in chosen],
    )
    found = policy.statistics(fewer, WIDTH, old=before.take(chosen))["old_kl"]
    assert_close(found[0, [2, 4]], whole[4, [2, 4]])
    assert_close(found[1, :3], whole[0, :3])
    assert int((found != 0).sum()) == 5
    with pytest.raises(ValueError, match="no state was stored"):
        policy.statistics(replace(fewer, masks=[(True,) * 5, (True,) * 8]), WIDTH, old=before.take(chosen))


@pytest.mark.parametrize("architecture", ["soft-cap", "logits scaling", "bias"], indirect=True)
def test_architectures_keep_what_they_do_to_logits(architecture, make_policy):  # noqa: F811 - the fixture
    from copy import deepcopy

    from llmrl.policy.model import Policy

    policy, other = (Policy(PolicyModule(deepcopy(architecture)), None, "") for _ in range(2))
    with torch.no_grad():
        for _, parameter in other.trainable():
            parameter += 0.02
    found = policy.statistics(ROWS, WIDTH, old=stored(other))["old_kl"]
    assert_close(found, loop(policy.model, other.model)[0], rtol=1e-3, atol=1e-5)


def test_half_precision(make_policy):
    config = {"precision": "bf16"}
    policy, reference = make_policy(config=config), make_policy(seed=1, config=config)
    found = policy.statistics(ROWS, WIDTH, ref=stored(reference))["ref_kl"]
    assert found.dtype == torch.float32
    expected = loop(policy.model, reference.model)[1]
    assert (found - expected).abs().max() < 0.1 * expected.max()
