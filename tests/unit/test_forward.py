"""The forward pass against a loop that asks the model for one token at a time."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from llmrl.ops import logprobs
from llmrl.policy import forward
from llmrl.policy.forward import PolicyModule, Rows, padded, rectangles
from llmrl.policy.load import check_head
from llmrl.policy.model import Policy

WIDTH = 8
SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ARCHITECTURES = {
    "soft-cap": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SMALL, head_dim=8, query_pre_attn_scalar=8, final_logit_softcapping=3.0)
    ),
    "sliding window": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=4)),
    "logit scale": lambda: CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.5)),
    "logits scaling": lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=3.0)),
    "bias": lambda: PhiForCausalLM(PhiConfig(**SMALL)),
    "learned positions": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4)),
}
LONG, SHORT = (3, 14, 15, 9, 26, 5, 35), (8,)
ROWS = Rows(
    contexts=[LONG, SHORT, LONG, LONG, SHORT, LONG],
    responses=[(31, 4, 15, 9, 26, 5, 3, 2), (2,), (7, 1, 8), (11,), (6, 6, 6, 6, 6), (9, 8, 7, 6)],
    masks=[(True,) * 8, (True,), (True, False, True), (True,), (False, True, True, False, True), (False,) * 4],
    temperatures=[1.0, 0.7, 1.3, 0.5, 1.0, 2.0],
)


def loop(model, rows: Rows):
    """(logprobs, entropy) by one whole forward pass a counted token."""
    zeros = [[torch.zeros(())] * WIDTH for _ in rows.contexts]
    out, entropies = zeros, [list(row) for row in zeros]
    for i, (context, response) in enumerate(zip(rows.contexts, rows.responses, strict=True)):
        for t, token in enumerate(response):
            if rows.masks[i][t]:
                ids = torch.tensor([[*context, *response[:t]]])
                spread = (model(input_ids=ids, use_cache=False).logits[0, -1] / rows.temperatures[i]).softmax(-1)
                out[i][t], entropies[i][t] = spread[token].log(), -(spread * spread.log()).sum()
    return torch.stack([torch.stack(r) for r in out]), torch.stack([torch.stack(r) for r in entropies])


def gradients(module, numbers):
    """Of a sum in which every number has another weight; zeros for parameters that nothing reaches."""
    weighted = sum((torch.linspace(-1, 2, n.numel()).reshape(n.shape) * n).sum() for n in numbers)
    parameters = list(module.parameters())
    found = torch.autograd.grad(weighted, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def assert_gradients_close(found, expected):
    flat, wanted = (torch.cat([g.flatten() for g in some]) for some in (found, expected))
    assert (flat - wanted).norm() <= 3e-6 * wanted.norm()


@pytest.fixture
def policy(make_policy):
    return make_policy(values=True)


@pytest.fixture
def architecture(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ARCHITECTURES[request.param]().eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, 0 if parameter.dim() > 1 else 1, 0.25)
    return model


@pytest.mark.parametrize("shared", [True, False])
def test_numbers_and_gradients_are_those_of_the_loop(policy, shared):
    found = policy.module(ROWS, WIDTH, entropy=True, shared=shared)
    expected = loop(policy.model, ROWS)
    assert_close((found["logprobs"], found["entropy"]), expected, rtol=1e-5, atol=1e-5)
    assert_gradients_close(
        gradients(policy.module, (found["logprobs"], found["entropy"])), gradients(policy.module, expected)
    )


def test_shared_is_dense_in_every_number_and_every_parameters_gradient(policy):
    both = [policy.module(ROWS, WIDTH, entropy=True, values=True, shared=shared) for shared in (True, False)]
    assert both[0].keys() == {"logprobs", "entropy", "values"}
    assert_close(both[0], both[1], rtol=1e-6, atol=2e-6)
    assert_gradients_close(*[gradients(policy.module, list(out.values())) for out in both])


@pytest.mark.parametrize("architecture", ARCHITECTURES, indirect=True)
@pytest.mark.parametrize("shared", [True, False])
def test_architectures_keep_what_they_do_to_positions_and_logits(architecture, shared):
    check_head(architecture)
    found = PolicyModule(architecture)(ROWS, WIDTH, entropy=True, shared=shared)
    expected = loop(architecture, ROWS)
    assert_close((found["logprobs"], found["entropy"]), expected, rtol=1e-5, atol=1e-5)
    assert_gradients_close(
        gradients(architecture, (found["logprobs"], found["entropy"])), gradients(architecture, expected)
    )


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("elements", [1, 3 * 128 + 17, 5 * 128])
def test_chunks_of_the_head_do_not_matter(policy, shared, elements, monkeypatch):
    whole = policy.module(ROWS, WIDTH, entropy=True, shared=shared)
    expected = gradients(policy.module, list(whole.values()))
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", elements)
    monkeypatch.setattr(logprobs, "LEAST_ROWS", 1)
    found = policy.module(ROWS, WIDTH, entropy=True, shared=shared)
    assert_close(found, whole)
    assert_gradients_close(gradients(policy.module, list(found.values())), expected)


def test_temperature_reaches_value_and_entropy_of_its_own_row(policy):
    cold = replace(ROWS, temperatures=[1.0] * 6)
    found, other = (policy.module(rows, WIDTH, entropy=True) for rows in (ROWS, cold))
    assert_close(found["logprobs"][[0, 4]], other["logprobs"][[0, 4]])
    for i in (1, 2, 3):
        assert (found["logprobs"][i, 0] - other["logprobs"][i, 0]).abs() > 0.01
        assert (found["entropy"][i, 0] - other["entropy"][i, 0]).abs() > 0.01


@pytest.mark.parametrize("shared", [True, False])
def test_padding_of_contexts_and_responses_does_not_matter(policy, shared):
    """A much longer row beside them pads the contexts on the left and the responses on the right."""
    beside = Rows(
        [*ROWS.contexts, tuple(range(3, 47)), tuple(range(3, 47))],
        [*ROWS.responses, tuple(range(5, 45)), (2,)],
        [*ROWS.masks, (True,) * 40, (True,)],
        [*ROWS.temperatures, 1.0, 1.0],
    )
    alone = policy.module(ROWS, WIDTH, entropy=True, values=True, shared=shared)
    among = policy.module(beside, 40, entropy=True, values=True, shared=shared)
    for name, numbers in alone.items():
        assert_close(among[name][:6, :WIDTH], numbers, rtol=1e-6, atol=2e-6)
        assert (among[name][:6, WIDTH:] == 0).all()


@pytest.mark.parametrize("shared", [True, False])
def test_a_rows_tokens_are_seen_by_no_other_row(policy, shared):
    changed = replace(ROWS, responses=[(40, 41, 42, 43, 44, 45, 46, 47), *ROWS.responses[1:]])
    before, after = (policy.module(rows, WIDTH, entropy=True, shared=shared) for rows in (ROWS, changed))
    for name in before:
        assert_close(after[name][1:], before[name][1:], rtol=1e-6, atol=2e-6)
        assert (after[name][0] - before[name][0]).abs().max() > 0.1


@pytest.mark.parametrize("shared", [True, False])
def test_gradient_of_one_row_does_not_reach_the_inputs_of_another(policy, shared):
    """Through the embeddings: of two rows with disjoint tokens only the first one's are moved by its loss."""
    policy.model.lm_head.weight = torch.nn.Parameter(policy.model.lm_head.weight.detach().clone())  # no longer tied
    rows = Rows(
        [(3, 4), (5, 6), (3, 4)], [(7, 8, 9), (10, 11, 12), (7, 8)], [(True,) * 3, (True,) * 3, (True,) * 2], [1.0] * 3
    )
    out = policy.module(rows, WIDTH, shared=shared)["logprobs"]
    (moved,) = torch.autograd.grad(out[0].sum(), policy.model.get_input_embeddings().weight)
    assert sorted(moved.abs().sum(1).nonzero().flatten().tolist()) == [3, 4, 7, 8]


@pytest.mark.parametrize("shared", [True, False])
def test_holes_in_the_mask_cost_no_head_position_and_get_no_gradient(policy, shared, monkeypatch):
    positions = []
    policy.model.lm_head.register_forward_hook(lambda module, inputs, output: positions.append(len(output)))
    found = policy.module(ROWS, WIDTH, entropy=True, values=True, shared=shared)
    assert sum(positions) == sum(map(sum, ROWS.masks)) == 15
    mask = torch.tensor([[*m, *(False,) * (WIDTH - len(m))] for m in ROWS.masks])
    assert all((numbers[~mask] == 0).all() for numbers in found.values())
    inside = sum((n.masked_fill(~mask, 0.0)).sum() for n in found.values())
    outside = sum((n.masked_fill(mask, 0.0)).sum() for n in found.values())
    assert all(
        g is None or (g == 0).all()
        for g in torch.autograd.grad(outside, list(policy.module.parameters()), allow_unused=True, retain_graph=True)
    )
    assert any(
        g is not None and (g != 0).any()
        for g in torch.autograd.grad(inside, list(policy.module.parameters()), allow_unused=True)
    )


def test_tokens_behind_a_hole_still_see_it(policy):
    other = replace(ROWS, responses=[*ROWS.responses[:2], (7, 2, 8), *ROWS.responses[3:]])
    before, after = (policy.module(rows, WIDTH)["logprobs"][2] for rows in (ROWS, other))
    assert before[0] == after[0] and before[2] != after[2]


def test_values_are_those_of_the_state_before_the_token(policy):
    found = policy.module(ROWS, WIDTH, values=True)["values"]
    context, response = ROWS.contexts[2], ROWS.responses[2]
    states = policy.model.get_decoder()(input_ids=torch.tensor([[*context, *response]])).last_hidden_state[0]
    expected = policy.module.value_head(states[[len(context) - 1, len(context) + 1]]).squeeze(-1)
    assert_close(found[2, [0, 2]], expected, rtol=1e-5, atol=1e-5)


def test_rows_of_which_nothing_counts(policy):
    empty = replace(ROWS, masks=[(False,) * len(r) for r in ROWS.responses])
    out = policy.module(empty, WIDTH, entropy=True, values=True)
    assert all((numbers == 0).all() for numbers in out.values())
    out["logprobs"].sum().backward()  # the graph is there, so that a rank without tokens stays in step


def test_a_prompt_is_forwarded_once_for_its_group(policy):
    """With three rows a prompt, one call forwards the prompts once and each response less its last token, no padding."""
    seen = []
    policy.model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    policy.module(ROWS, WIDTH, shared=True)
    assert seen == [len(LONG) + len(SHORT) + sum(len(r) - 1 for r in ROWS.responses)]
    alone = replace(ROWS, contexts=[(i, *c) for i, c in enumerate(ROWS.contexts, 40)])  # none is shared
    policy.module(alone, WIDTH, shared=True)
    assert seen[1:] == [sum(len(c) + len(r) - 1 for c, r in zip(alone.contexts, alone.responses, strict=True))]


def test_rows_beyond_a_sliding_window_are_left_to_transformers(recwarn):
    model = ARCHITECTURES["sliding window"]().eval()
    policy, calls = Policy(PolicyModule(model), None, ""), []
    model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: calls.append("packing" in kwargs), with_kwargs=True
    )
    within = Rows([(3, 4), (3, 4)], [(5, 6), (7,)], [(True,) * 2, (True,)], [1.0, 1.0])
    policy.statistics(within, WIDTH)
    assert any(calls) and policy.shared
    calls.clear()
    policy.statistics(ROWS, WIDTH)
    assert not any(calls) and policy.shared and not recwarn.list


def test_rectangles_hold_every_response_once_and_little_padding():
    lengths = [0, 40, 3, 2, 38, 17, 0, 1]
    buckets = rectangles(lengths, 1.25)
    assert sorted(i for bucket in buckets for i in bucket) == [1, 2, 3, 4, 5, 7]
    for bucket in buckets:
        assert max(lengths[i] for i in bucket) <= 1.25 * min(lengths[i] for i in bucket) + 2


@pytest.mark.parametrize("left, expected", [(True, [[5, 6, 7], [0, 0, 8]]), (False, [[5, 6, 7], [8, 0, 0]])])
def test_padded(left, expected):
    ids, mask = padded([(5, 6, 7), (8,)], torch.device("cpu"), left)
    assert ids.tolist() == expected and mask.tolist() == [[int(i > 0) for i in row] for row in expected]


def test_a_wrong_shared_pass_is_noticed_and_left(policy, monkeypatch):
    right = forward.shared_states

    def wrong(*given):
        states, first, rest = right(*given)
        return states, first, rest - 1  # off by one token

    expected = policy.module(ROWS, WIDTH, shared=False)["logprobs"]
    monkeypatch.setattr(forward, "shared_states", wrong)
    with pytest.warns(UserWarning, match="changes log-probabilities by up to"):
        found = policy.statistics(ROWS, WIDTH)["logprobs"]
    assert_close(found, expected)
    assert policy.shared is False


def test_the_first_shared_pass_is_compared_once_and_kept(policy, recwarn):
    policy.statistics(ROWS, WIDTH)
    assert policy.shared is True and not [w for w in recwarn if "sharing" in str(w.message)]
    calls = []
    policy.module.register_forward_hook(lambda *_: calls.append(1))
    policy.statistics(ROWS, WIDTH)
    assert len(calls) == 1


@pytest.mark.parametrize("shared", [True, False])
def test_the_decoder_is_in_double_precision_what_it_is_in_single(policy, shared):
    """Rounding apart, so that differences above it cannot hide behind a tolerance."""
    single = policy.module(ROWS, WIDTH, shared=shared)["logprobs"]
    double = policy.module.double()(ROWS, WIDTH, shared=not shared)["logprobs"]
    assert_close(single.double(), double.double(), rtol=1e-6, atol=1e-6)


def test_an_attention_that_asks_for_more_is_forwarded_whole(policy, monkeypatch):
    """Such as learned sinks, which transformers hands to the attention function."""
    decoder = policy.model.get_decoder()
    decoder.register_forward_pre_hook(
        lambda module, args, kwargs: (args, kwargs | ({"s_aux": torch.zeros(4)} if "packing" in kwargs else {})),
        with_kwargs=True,
    )
    expected = policy.module(ROWS, WIDTH, shared=False)["logprobs"]
    with pytest.warns(UserWarning, match="s_aux"):
        assert_close(policy.statistics(ROWS, WIDTH)["logprobs"], expected)
    assert policy.shared is False


def test_an_architecture_without_such_an_attention_is_forwarded_whole(recwarn):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, state_size=4)).eval()
    policy = Policy(PolicyModule(model), None, "")
    found = policy.statistics(ROWS, WIDTH)["logprobs"]
    assert_close(found, loop(model, ROWS)[0], rtol=1e-4, atol=1e-4)
    assert not policy.module.shares(ROWS)
