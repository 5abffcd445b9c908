import copy
import pickle

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from llmrl.ops import linear as module
from llmrl.ops.linear import faster, install, linear


@pytest.fixture
def draw():
    generator = torch.Generator().manual_seed(0)
    return lambda *shape, **options: torch.randn(*shape, generator=generator, **options)


@pytest.fixture
def by_onednn(monkeypatch):
    """Counts the products that go to oneDNN."""
    if not module.works():
        pytest.skip("this torch has no oneDNN")
    calls, product = [], module._product
    monkeypatch.setattr(module, "_product", lambda *given: calls.append(1) or product(*given))
    return calls


@pytest.mark.parametrize("shape", [(7, 16), (2, 3, 16), (1, 16), (2, 1, 5, 16)])
@pytest.mark.parametrize("biased", [True, False])
def test_values_and_gradients_are_those_of_torch(draw, by_onednn, shape, biased):
    x, weight = draw(*shape), draw(5, 16)
    bias = draw(5) if biased else None
    toward = draw(*shape[:-1], 5)
    found = []
    for function in (linear, nn.functional.linear):
        given = [t.clone().requires_grad_() for t in (x, weight, bias) if t is not None]
        out = function(*given)
        found.append([out, *torch.autograd.grad((out * toward).sum(), given)])
    assert_close(*found, atol=1e-5, rtol=1e-5)
    assert len(by_onednn) == 3  # the product and both of its gradients


def test_gradients_of_gradients(draw, by_onednn):
    x, weight, bias = draw(3, 4), draw(2, 4), draw(2)
    direction = draw(2, 4)
    found = []
    for function in (linear, nn.functional.linear):
        w = weight.clone().requires_grad_()
        (slope,) = torch.autograd.grad(function(x, w, bias).pow(3).sum(), w, create_graph=True)
        found.append(torch.autograd.grad((slope * direction).sum(), w)[0])
    assert_close(*found, atol=1e-4, rtol=1e-5)


def test_only_what_asks_for_a_gradient_gets_one(draw, by_onednn):
    x, weight = draw(3, 4), draw(2, 4, requires_grad=True)
    linear(x, weight).sum().backward()
    assert len(by_onednn) == 2 and x.grad is None
    with torch.no_grad():
        assert not linear(x, weight).requires_grad


def test_transposed_and_strided_matrices(draw, by_onednn):
    x, weight = draw(6, 8)[::2, 1:7], draw(6, 10).t()[2:7]
    assert_close(linear(x, weight), nn.functional.linear(x, weight), atol=1e-5, rtol=1e-5)


def test_what_is_left_to_torch(draw, monkeypatch):
    x, weight = draw(3, 4), draw(2, 4)
    assert faster(x, weight) == module.works()
    assert not faster(x.double(), weight.double()) and not faster(x.bfloat16(), weight.bfloat16())
    assert not faster(x[:0], weight) and linear(x[:0], weight).shape == (0, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    monkeypatch.setattr(module, "works", lambda: False)
    assert not faster(x, weight)


def test_layers_of_a_model_multiply_so_and_stay_what_they_are(draw, by_onednn):
    class Other(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    model = nn.Sequential(nn.Linear(4, 4), Other(4, 2))
    x, names = draw(3, 4), list(model.state_dict())
    expected = model(x)
    assert not by_onednn
    install(model)
    assert_close(model(x), expected, atol=1e-6, rtol=1e-5)
    assert len(by_onednn) == 1 and list(model.state_dict()) == names and type(model[0]) is nn.Linear
    for other in (copy.deepcopy(model[0]), pickle.loads(pickle.dumps(model[0]))):  # noqa: S301 - our own bytes
        with torch.no_grad():
            other.weight.zero_()
            other.bias.zero_()
        assert not other(x).any() and model[0](x).any()  # each reads its own weights
