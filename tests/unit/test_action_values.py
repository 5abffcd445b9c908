"""The critic with a value for every token."""

import pytest
import torch
from test_forward import ROWS, WIDTH, assert_gradients_close, gradients
from torch import nn, tensor
from torch.testing import assert_close

from llmrl.config import Model
from llmrl.ops import logprobs
from llmrl.ops.logprobs import action_statistics
from llmrl.policy.forward import ACTION_VALUES
from llmrl.policy.load import load_policy

HIDDEN, VOCABULARY, TOKENS = 6, 11, 23


@pytest.fixture
def policy(make_policy):
    return make_policy(action_values=True)


def by_definition(logits, values, label):
    spread = logits.softmax(-1)
    mean = (spread * values).sum(-1)
    return values[label], mean.detach(), (spread * (values - mean).detach()).sum(-1)


def loop(policy):
    """The three arrays by one whole forward pass a counted token."""
    out = [[[torch.zeros(())] * WIDTH for _ in ROWS.contexts] for _ in ACTION_VALUES]
    trunk, critic = policy.model.get_decoder(), policy.module.action_value_head
    for i, (context, response) in enumerate(zip(ROWS.contexts, ROWS.responses, strict=True)):
        for t, token in enumerate(response):
            if ROWS.masks[i][t]:
                state = trunk(input_ids=tensor([[*context, *response[:t]]])).last_hidden_state[0, -1]
                logits = policy.model.lm_head(state) / ROWS.temperatures[i]
                for place, number in enumerate(by_definition(logits, critic(state), token)):
                    out[place][i][t] = number
    return {name: torch.stack([torch.stack(row) for row in one]) for name, one in zip(ACTION_VALUES, out, strict=True)}


def test_worked_means_of_three_states():
    spread = tensor([[0.5, 0.5], [0.25, 0.75], [0.8, 0.2]])
    q = tensor([[0.2, 0.4], [0.5, 0.1], [0.9, 0.3]])
    rows = torch.arange(3)[:, None]  # a state's number stands for the state
    taken, mean, advantage = action_statistics(
        rows, lambda s: spread[s[:, 0]].log(), lambda s: q[s[:, 0]], tensor([0, 1, 0]), torch.ones(3), 2
    )
    assert_close(mean, tensor([0.3, 0.2, 0.78]))
    assert_close(taken, tensor([0.2, 0.1, 0.9]))
    assert_close(advantage, torch.zeros(3), rtol=0, atol=1e-7)


@pytest.mark.parametrize("kept", [0, 1 << 24])
@pytest.mark.parametrize("elements", [1, 4 * VOCABULARY + 3, 1 << 22])
def test_chunks_change_neither_values_nor_gradients(elements, kept, monkeypatch):
    monkeypatch.setattr(logprobs, "KEPT_ELEMENTS", kept)
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", elements)
    monkeypatch.setattr(logprobs, "LEAST_ROWS", 1)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator).requires_grad_()
    labels = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    temperatures = 0.5 + torch.rand(TOKENS, generator=generator)
    head, critic = nn.Linear(HIDDEN, VOCABULARY), nn.Linear(HIDDEN, VOCABULARY)
    found = action_statistics(hidden, head, critic, labels, temperatures, VOCABULARY)
    each = [by_definition(head(h) / t, critic(h), a) for h, t, a in zip(hidden, temperatures, labels, strict=True)]
    expected = [torch.stack(column) for column in zip(*each, strict=True)]
    assert_close(list(found), expected)
    assert not found[1].requires_grad
    weights, inputs = torch.linspace(-1, 2, TOKENS), [hidden, *head.parameters(), *critic.parameters()]
    for place in (0, 2):
        both = [
            torch.autograd.grad((weights * n[place]).sum(), inputs, allow_unused=True, retain_graph=True)
            for n in (found, expected)
        ]
        for one, other in zip(*both, strict=True):
            zero = torch.zeros(())
            assert_close(zero if one is None else one, zero if other is None else other, rtol=1e-4, atol=1e-5)
    assert both[0][3] is None and both[0][4] is None  # the expected advantage moves the policy alone


@pytest.mark.parametrize("shared", [True, False])
def test_numbers_and_gradients_are_those_of_the_loop(policy, shared):
    found = policy.module(ROWS, WIDTH, shared=shared, logprobs=False, action_values=True)
    expected = loop(policy)
    assert tuple(found) == ACTION_VALUES
    assert_close(found, expected, rtol=1e-4, atol=1e-5)
    both = [[out["action_values"], 3 * out["expected_advantages"]] for out in (found, expected)]
    assert_gradients_close(*[gradients(policy.module, numbers) for numbers in both])


def test_the_head_begins_at_zero_and_is_trained(policy, tiny_folder, tmp_path):
    fresh = load_policy(Model(path=tiny_folder), tmp_path, seed=0, action_values=True)
    assert not any(
        bool(column.any()) for column in fresh.statistics(ROWS, WIDTH, logprobs=False, action_values=True).values()
    )
    assert {"action_value_head.weight", "action_value_head.bias"} <= dict(fresh.trainable()).keys()
    policy.statistics(ROWS, WIDTH, action_values=True)["action_values"].sum().backward()
    assert all((p.grad != 0).any() for p in policy.module.action_value_head.parameters())


@pytest.mark.parametrize("config", [{}, {"lora": {"rank": 4}}], ids=["whole", "adapters"])
def test_the_head_is_exported_and_comes_back(make_policy, tiny_folder, tmp_path, config):
    policy = make_policy(action_values=True, config=config)
    policy.export(tmp_path / "export")
    made = Model.model_validate({"path": tiny_folder} | config)
    again = load_policy(made, tmp_path, seed=9, action_values=True, trained=str(tmp_path / "export"))
    if not config:
        both = [p.statistics(ROWS, WIDTH, action_values=True) for p in (policy, again)]
        assert_close(both[0], both[1])
    assert torch.equal(again.module.action_value_head.weight, policy.module.action_value_head.weight)
    assert not [name for name, _ in policy.named_weights() if "action_value" in name]
