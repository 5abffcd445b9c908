"""Log-probabilities straight from an output layer's matrix: what they are against their definition, and what they keep."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from llmrl.ops import linear, logprobs, projected
from llmrl.ops.logprobs import token_statistics
from llmrl.ops.projected import Projection
from llmrl.policy.forward import LogitHead

HIDDEN, VOCABULARY, TOKENS = 6, 37, 23


@pytest.fixture
def given():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator).requires_grad_()
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator).requires_grad_()
    labels = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    labels[:2] = torch.tensor([0, VOCABULARY - 1])
    return hidden, weight, labels, 0.5 + torch.rand(TOKENS, generator=generator)


def dense(hidden, weight, labels, temperatures, scale=1.0, cap=None):
    """(logprobs, entropy) with everything at once, written as their definitions."""
    logits = hidden @ weight.T * scale
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    spread = torch.softmax(logits / temperatures[:, None], -1)
    return spread[torch.arange(len(labels)), labels].log(), -(spread * spread.log()).sum(-1)


def gradients(hidden, weight, numbers, **options):
    weighted = sum((torch.linspace(-1, 2, len(n)) * n).sum() for n in numbers if n is not None)
    return torch.autograd.grad(weighted, [hidden, weight], **options)


def ours(hidden, weight, labels, temperatures, scale=1.0, cap=None, entropy=True):
    return token_statistics(hidden, Projection(weight, scale, cap), labels, temperatures, VOCABULARY, entropy)


@pytest.mark.parametrize("kept", [0, 1 << 24])
@pytest.mark.parametrize("words", [1, 8, VOCABULARY - 1, 4096])
@pytest.mark.parametrize("elements", [1, 4 * 8 + 3, TOKENS * VOCABULARY, 1 << 22])
@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.3, None), (0.3, 2.0)])
def test_tiles_change_neither_values_nor_gradients(given, elements, words, kept, scale, cap, monkeypatch):
    monkeypatch.setattr(logprobs, "KEPT_ELEMENTS", kept)
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", elements)
    monkeypatch.setattr(projected, "WORDS", words)
    found, expected = ours(*given, scale, cap), dense(*given, scale, cap)
    assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert_close(gradients(*given[:2], found), gradients(*given[:2], expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("which", [0, 1])
def test_either_number_alone_has_its_gradient(given, which):
    found, expected = ours(*given)[which], dense(*given)[which]
    assert_close(gradients(*given[:2], [found]), gradients(*given[:2], [expected]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kept", [0, 1 << 24])
def test_a_second_backward_pass_gives_the_same(given, kept, monkeypatch):
    monkeypatch.setattr(logprobs, "KEPT_ELEMENTS", kept)
    found = ours(*given)
    first = gradients(*given[:2], found, retain_graph=True)
    assert_close(gradients(*given[:2], found), first, rtol=0, atol=0)


@pytest.mark.parametrize("frozen", [0, 1])
def test_what_is_frozen_costs_no_product(given, frozen, monkeypatch):
    given[frozen].requires_grad_(False)
    sizes, right = [], projected.add_product
    monkeypatch.setattr(projected, "add_product", lambda total, *rest: sizes.append(total.shape) or right(total, *rest))
    trained, numbers = given[1 - frozen], (ours(*given), dense(*given))
    weighted = [sum((torch.linspace(-1, 2, TOKENS) * n).sum() for n in pair) for pair in numbers]
    assert_close(*(torch.autograd.grad(w, trained)[0] for w in weighted), rtol=1e-4, atol=1e-5)
    assert sizes == [trained.shape]


def test_no_logits_are_kept_of_a_large_call(given, monkeypatch):
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 5 * VOCABULARY)
    for kept, expected in ((TOKENS * VOCABULARY - 1, 0), (TOKENS * VOCABULARY, TOKENS * VOCABULARY)):
        monkeypatch.setattr(logprobs, "KEPT_ELEMENTS", kept)
        found, _ = ours(*given, entropy=False)
        assert sum(tile.numel() for tile in found.grad_fn.logits) == expected
        assert max(t.numel() for t in found.grad_fn.saved_tensors) == VOCABULARY * HIDDEN


def test_no_tile_is_larger_than_allowed():
    for elements in (1, 100, 5000, 1 << 22):
        for whole in (True, False):
            for rows, words in projected.tiles(700, 9000, elements, whole):
                size = (rows.stop - rows.start) * (words.stop - words.start)
                assert size <= max(elements, 9000 if whole else 1)
                assert not whole or words == slice(0, 9000)


@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision(given, autocast):
    """Under autocast masters stay in fp32; without, a module in bf16 gives and takes bf16."""
    hidden, weight, labels, temperatures = given
    if not autocast:
        hidden, weight = (x.detach().bfloat16().requires_grad_() for x in (hidden, weight))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = ours(hidden, weight, labels, temperatures)
    expected = dense(*(x.detach().float().requires_grad_() for x in (hidden, weight)), labels, temperatures)
    assert {x.dtype for x in found} == {torch.float32}
    assert_close(found, expected, rtol=0.03, atol=0.05)
    got = gradients(hidden, weight, found)
    assert [g.dtype for g in got] == [hidden.dtype, weight.dtype]
    assert_close([g.float() for g in got], list(gradients(*given[:2], dense(*given))), rtol=0.1, atol=0.2)


@pytest.mark.parametrize("entropy", [True, False])
def test_no_token_at_all(given, entropy):
    hidden, weight, labels, temperatures = given
    found, other = ours(hidden[:0], weight, labels[:0], temperatures[:0], entropy=entropy)
    assert found.shape == (0,) and found.requires_grad and (other is None) != entropy
    assert_close(torch.autograd.grad(found.sum(), weight)[0], torch.zeros_like(weight))


def test_large_logits_stay_finite():
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[5e3], [0.0]])
    for words in (1, 4096):
        projected.WORDS, before = words, projected.WORDS
        found, entropy = token_statistics(hidden, Projection(weight), torch.tensor([1]), torch.ones(1), 2, entropy=True)
        projected.WORDS = before
        assert_close((found, entropy), (torch.tensor([-5e3]), torch.tensor([0.0])))


class Base(nn.Module):
    """As much of a transformers model as LogitHead looks at."""

    class config:  # noqa: N801
        vocab_size, final_logit_softcapping = VOCABULARY, 3.0
        get_text_config = classmethod(lambda cls: cls)

    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def get_output_embeddings(self):
        return self.linear


def test_which_heads_are_a_matrix_and_nothing_else():
    head = Base(nn.Linear(HIDDEN, VOCABULARY, bias=False))
    found = LogitHead(head).plain()
    assert isinstance(found, Projection) and found.weight is head.linear.weight and found.cap == 3.0

    linear.install(head)
    assert isinstance(LogitHead(head).plain(), Projection)

    class Adapted(nn.Linear):
        pass

    hooked = nn.Linear(HIDDEN, VOCABULARY, bias=False)
    hooked.register_forward_pre_hook(lambda module, inputs: None)
    patched = nn.Linear(HIDDEN, VOCABULARY, bias=False)
    patched.forward = lambda hidden: hidden
    for other in (nn.Linear(HIDDEN, VOCABULARY), Adapted(HIDDEN, VOCABULARY, bias=False), hooked, patched):
        assert isinstance(LogitHead(Base(other)).plain(), LogitHead)
