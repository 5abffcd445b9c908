import math

import pytest
import torch
from torch import nn, tensor
from torch.testing import assert_close

from llmrl.ops import logprobs
from llmrl.ops.logprobs import token_statistics

HIDDEN, VOCABULARY, TOKENS = 6, 11, 23


@pytest.fixture
def given():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator)
    labels = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    temperatures = 0.5 + torch.rand(TOKENS, generator=generator)
    head = nn.Linear(HIDDEN, VOCABULARY)
    return hidden, head, labels, temperatures


def dense(hidden, head, labels, temperatures):
    """(logprobs, entropy) with everything at once, written as their definitions."""
    spread = torch.softmax(head(hidden) / temperatures[:, None], -1)
    return spread[torch.arange(len(labels)), labels].log(), -(spread * spread.log()).sum(-1)


def gradients(head, hidden, numbers):
    weighted = sum((torch.linspace(-1, 2, TOKENS) * n).sum() for n in numbers)
    return torch.autograd.grad(weighted, [hidden, *head.parameters()])


def test_entropy_of_three_logits():
    # softmax of 1, 0, -1 is .66524, .24473, .09003
    found, entropy = token_statistics(tensor([[1.0, 0, -1]]), lambda h: h, tensor([0]), torch.ones(1), 3, True)
    assert_close(entropy, tensor([0.832396]), rtol=1e-5, atol=1e-6)
    assert_close(found, tensor([math.log(0.665241)]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kept", [0, 1 << 24])
@pytest.mark.parametrize("elements", [1, 4 * VOCABULARY + 3, 7 * VOCABULARY, TOKENS * VOCABULARY, 1 << 22])
def test_chunks_change_neither_values_nor_gradients(given, elements, kept, monkeypatch):
    monkeypatch.setattr(logprobs, "KEPT_ELEMENTS", kept)
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", elements)
    monkeypatch.setattr(logprobs, "LEAST_ROWS", 1)
    hidden, head, labels, temperatures = given
    hidden.requires_grad_()
    found = token_statistics(hidden, head, labels, temperatures, VOCABULARY, True)
    expected = dense(hidden, head, labels, temperatures)
    assert_close(found, expected)
    assert_close(gradients(head, hidden, found), gradients(head, hidden, expected), rtol=1e-4, atol=1e-5)


def test_no_chunk_is_larger_than_allowed(given, monkeypatch):
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 5 * VOCABULARY + 1)
    monkeypatch.setattr(logprobs, "LEAST_ROWS", 1)
    hidden, head, labels, temperatures = given
    sizes = []
    head.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    with torch.no_grad():
        token_statistics(hidden, head, labels, temperatures, VOCABULARY, False)
    assert sizes == [5, 5, 5, 5, 3]


def test_no_logits_are_kept_for_the_backward_pass(given, monkeypatch):
    monkeypatch.setattr(logprobs, "KEPT_ELEMENTS", TOKENS * VOCABULARY - 1)
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 5 * VOCABULARY)
    monkeypatch.setattr(logprobs, "LEAST_ROWS", 1)
    hidden, head, labels, temperatures = given
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        token_statistics(hidden.requires_grad_(), head, labels, temperatures, VOCABULARY, True)
    assert not [shape for shape in kept if shape[-1:] == (VOCABULARY,) and len(shape) == 2]


def test_half_precision_states_give_fp32_numbers(given):
    hidden, head, labels, temperatures = given
    half = hidden.bfloat16()
    found, entropy = token_statistics(half, head.bfloat16(), labels, temperatures, VOCABULARY, True)
    assert found.dtype == entropy.dtype == torch.float32
    assert_close(found.exp().log(), dense(half.float(), head.float(), labels, temperatures)[0], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("entropy", [True, False])
def test_no_token_at_all(given, entropy):
    hidden, head, labels, temperatures = given
    states = hidden[:0].requires_grad_()
    found, other = token_statistics(states, head, labels[:0], temperatures[:0], VOCABULARY, entropy)
    assert found.shape == (0,) and found.requires_grad and (other is None) != entropy


def test_large_logits_stay_finite():
    found, entropy = token_statistics(tensor([[5e3, 0.0]]), lambda h: h, tensor([1]), torch.ones(1), 2, True)
    assert_close(found, tensor([-5e3]))
    assert_close(entropy, tensor([0.0]))
