"""Noise inside the model: the paper's toy numbers, and that no cut of the batch changes what is drawn."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_forward import ARCHITECTURES, ROWS, WIDTH, architecture, assert_gradients_close, gradients  # noqa: F401 - a fixture is among them
from torch import nn, tensor
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, MambaConfig, MambaForCausalLM

from llmrl import catalog
from llmrl.config import Training
from llmrl.errors import ModelError, RecipeError
from llmrl.options import bind
from llmrl.policy import noise as policy_noise
from llmrl.policy.forward import PolicyModule
from llmrl.policy.model import Policy
from llmrl.policy.noise import LayerNoise, Noise, _Perturbed, digest, normals
from llmrl.run import make_optimizer
from llmrl.training import checkpoint

KEYED = replace(ROWS, keys=[10, 11, 12, 13, 14, 15])
SEED = 7
LOUD = LayerNoise(sigma=0.2)


class Residual(nn.Module):
    """h + tanh(h W)."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, hidden):
        return hidden + torch.tanh(hidden @ self.weight)


@pytest.fixture
def noisy(make_policy):
    """noisy(perturb, options of make_policy) -> Policy"""

    def make(perturb=LOUD, **options):
        policy = make_policy(**options)
        policy.module.noise = perturb.apply(policy.model)
        return policy

    return make


@pytest.fixture
def policy(noisy):
    return noisy()


def numbers(policy, rows=KEYED, seed=SEED, **options):
    return policy.module(rows, WIDTH, entropy=True, perturbed=seed, **options)


def test_worked_numbers_of_a_toy_stack(monkeypatch):
    """One residual layer, x = I, W = I/2; logits h U with U = [[1,0,-1],[0,1,0]]; targets 0 and 1; sigma .1."""
    drawn, head = tensor([[1.0, -1.0], [0.5, 2.0]]), tensor([[1.0, 0, -1], [0, 1, 0]])
    monkeypatch.setattr(policy_noise, "normals", lambda codes, width: drawn)
    layer = Residual(0.5 * torch.eye(2))
    noise = Noise(SimpleNamespace(is_gradient_checkpointing=False), {0: layer}, 0.1, 1.0)

    def logprobs():
        return (layer(torch.eye(2)) @ head).log_softmax(-1)[[0, 1], [0, 1]]

    plain = logprobs()
    with noise.keyed(torch.zeros(2, dtype=torch.long)):
        found = logprobs()
    assert_close(found, tensor([-0.194259, -0.302375]), rtol=0, atol=1e-6)
    assert_close(plain, tensor([-0.25111, -0.380824]), rtol=0, atol=1e-6)
    # d log_coef = sigma · sum(g · eps), g the gradient of the layer's input
    inputs = (torch.eye(2) + 0.1 * drawn).requires_grad_()
    (slope,) = torch.autograd.grad((layer(inputs) @ head).log_softmax(-1)[[0, 1], [0, 1]].sum(), inputs)
    (found_slope,) = torch.autograd.grad(found.sum(), noise.log_coef)
    assert_close(found_slope, (0.1 * (slope * drawn).sum())[None])


def test_shared_and_dense_passes_draw_the_same(policy):
    both = [numbers(policy, shared=shared) for shared in (True, False)]
    assert_close(both[0], both[1], rtol=1e-5, atol=1e-5)
    assert (both[0]["logprobs"] - policy.module(ROWS, WIDTH)["logprobs"]).abs().max() > 0.1
    assert_gradients_close(*[gradients(policy.module, list(out.values())) for out in both])


@pytest.mark.parametrize("shared", [True, False])
def test_no_split_and_no_order_changes_what_is_drawn(policy, shared):
    whole = numbers(policy, shared=shared)
    for chosen in ([0], [3, 1], [5, 4, 2], [2, 0, 5, 3]):
        fields = ("contexts", "responses", "masks", "temperatures", "keys")
        some = replace(KEYED, **{name: [getattr(KEYED, name)[i] for i in chosen] for name in fields})
        part = numbers(policy, some, shared=shared)
        for name, column in part.items():
            assert_close(column, whole[name][chosen], rtol=1e-5, atol=1e-5)


def test_padding_does_not_change_what_is_drawn(policy):
    longer = replace(
        KEYED,
        contexts=[*KEYED.contexts, tuple(range(3, 47))],
        responses=[*KEYED.responses, tuple(range(5, 45))],
        masks=[*KEYED.masks, (True,) * 40],
        temperatures=[*KEYED.temperatures, 1.0],
        keys=[*KEYED.keys, 99],
    )
    alone = numbers(policy)["logprobs"]
    for shared in (True, False):
        among = policy.module(longer, 40, shared=shared, perturbed=SEED)["logprobs"][:6, :WIDTH]
        assert_close(among, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("error:sharing")
def test_recomputed_activations_get_the_same_noise(noisy):
    found = []
    for checkpointing in (False, True):
        policy = noisy(config={"gradient_checkpointing": checkpointing})
        out = numbers(policy, shared=False)
        twice = [gradients_kept(policy.module, out) for _ in range(2)]  # a kept graph is recomputed again
        assert_close(twice[0], twice[1])
        found.append((out, twice[0]))
    assert_close(found[0][0], found[1][0], rtol=1e-6, atol=1e-6)
    assert_gradients_close(found[0][1], found[1][1])


def gradients_kept(module, out):
    total = sum((torch.linspace(-1, 2, n.numel()).reshape(n.shape) * n).sum() for n in out.values())
    return list(torch.autograd.grad(total, list(module.parameters()), retain_graph=True))


def test_the_seed_and_the_keys_say_what_is_drawn(policy):
    first = numbers(policy)["logprobs"]
    assert torch.equal(first, numbers(policy)["logprobs"])
    assert (first - numbers(policy, seed=SEED + 1)["logprobs"]).abs().max() > 0.1
    other = numbers(policy, replace(KEYED, keys=[20, *KEYED.keys[1:]]))["logprobs"]
    assert_close(other[1:], first[1:], rtol=1e-6, atol=2e-6)  # other rows keep theirs
    assert_close(other[0, 0], first[0, 0], rtol=1e-6, atol=2e-6)  # the context's noise hangs on its tokens alone
    assert (other[0, 1:] - first[0, 1:]).abs().min() > 1e-3


def test_without_keys_there_is_no_noise_to_draw(policy):
    with pytest.raises(ValueError, match="Rows.keys"):
        numbers(policy, ROWS)


def test_every_other_pass_is_bit_for_bit_the_plain_model(make_policy, noisy, policy):
    quiet, plain = noisy(LayerNoise(sigma=0)), make_policy()
    expected = plain.module(ROWS, WIDTH, entropy=True)
    silent = numbers(quiet)
    for name, column in expected.items():
        assert torch.equal(policy.module(ROWS, WIDTH, entropy=True)[name], column)
        assert torch.equal(silent[name], column)
    ids = tensor([[5, 6, 7]])
    numbers(policy)  # whatever ran before
    assert torch.equal(policy.model(input_ids=ids).logits, plain.model(input_ids=ids).logits)
    silent["logprobs"].sum().backward()
    assert torch.equal(quiet.module.noise.log_coef.grad, torch.zeros(2))


def test_gradient_of_log_coef_is_the_finite_difference(policy):
    coefficients = policy.module.noise.log_coef
    weights = torch.linspace(-1, 2, 6 * WIDTH).reshape(6, WIDTH)

    def total():
        return (weights * policy.module(KEYED, WIDTH, perturbed=SEED)["logprobs"]).sum()

    (found,) = torch.autograd.grad(total(), coefficients)
    for layer in range(2):
        ends = []
        for step in (1e-2, -1e-2):
            with torch.no_grad():
                coefficients[layer] += step
                ends.append(total().item())
                coefficients[layer] -= step
        assert found[layer].item() == pytest.approx((ends[0] - ends[1]) / 2e-2, rel=1e-2) and abs(found[layer]) > 0.1


def test_gradients_of_one_layers_noise_are_those_of_noise_that_is_kept():
    hidden, log_coef = torch.randn(3, 4, 5, requires_grad=True), tensor(-1.5, requires_grad=True)
    codes = torch.arange(12).reshape(3, 4)
    found = _Perturbed.apply(hidden, log_coef, codes)
    expected = hidden + log_coef.exp() * normals(codes, 5)
    assert torch.equal(found, expected)
    both = [torch.autograd.grad((out**2).sum(), (hidden, log_coef)) for out in (found, expected)]
    assert_close(both[0], both[1])


def test_draws_are_standard_normal_and_unrelated():
    codes = policy_noise._codes(3, digest((5, 6, 7)), torch.arange(600))
    drawn = normals(codes, 501)
    assert drawn.shape == (600, 501) and drawn.dtype == torch.float32
    flat = drawn.flatten().double()
    # standard errors with 3e5 draws: mean .0018, variance .0026, third moment .007, fourth .018
    moments = [flat.mean(), flat.var(), (flat**3).mean(), (flat**4).mean()]
    assert_close(torch.stack(moments), tensor([0.0, 1, 0, 3]).double(), rtol=0, atol=0.07)
    assert abs(moments[0]) < 0.008 and abs(moments[1] - 1) < 0.012
    assert (flat.abs() > 1.959964).double().mean().item() == pytest.approx(0.05, abs=0.002)
    for other in (
        normals(policy_noise._codes(4, digest((5, 6, 7)), torch.arange(600)), 501),  # another seed
        normals(policy_noise._codes(3, 10, torch.arange(600)), 501),  # another row
        normals(policy_noise._hash64(codes ^ 1), 501),  # another layer
        drawn.roll(1, 0),  # the next position
        drawn.roll(1, 1),  # the next unit
        drawn.roll(251, 1),  # the other half of a pair
    ):
        assert abs((drawn * other).mean()) < 0.01


def test_only_the_layers_asked_for_get_noise(noisy):
    late = noisy(LayerNoise(sigma=0.2, first=1))
    early = noisy(LayerNoise(sigma=0.2, last=1))
    both = noisy()
    assert [len(p.module.noise.log_coef) for p in (late, early, both)] == [1, 1, 2]
    with torch.no_grad():
        late_coef, early_coef = late.module.noise.log_coef, early.module.noise.log_coef
        both.module.noise.log_coef.copy_(torch.cat([early_coef, late_coef]))
        expected = numbers(both)["logprobs"]
        both.module.noise.log_coef[0] = -torch.inf
        assert_close(numbers(both)["logprobs"], numbers(late)["logprobs"])
        both.module.noise.log_coef.copy_(torch.cat([early_coef, tensor([-torch.inf])]))
        assert_close(numbers(both)["logprobs"], numbers(early)["logprobs"])
    assert (expected - numbers(both)["logprobs"]).abs().max() > 0.05


@pytest.mark.parametrize("first, last", [(2, None), (1, 1), (0, 3)])
def test_layers_that_are_not_there(noisy, first, last):
    with pytest.raises(ModelError, match="the model has 2"):
        noisy(LayerNoise(first=first, last=last))


def test_options_are_checked():
    part = catalog.get("perturbations", "layer_noise")
    assert vars(bind(part, {})) == {"sigma": 1e-6, "learning_rate": 5e-4, "first": 0, "last": None}
    for wrong in ({"sigma": -1.0}, {"first": -1}, {"learning_rate": 0.0}, {"sigm": 1.0}):
        with pytest.raises(RecipeError):
            bind(part, wrong)


@pytest.mark.parametrize("architecture", ARCHITECTURES, indirect=True)
def test_architectures_take_noise(architecture):  # noqa: F811 - the fixture
    module = PolicyModule(architecture)
    module.noise = LOUD.apply(architecture)
    both = [module(KEYED, WIDTH, shared=shared, perturbed=SEED)["logprobs"] for shared in (True, False)]
    assert_close(both[0], both[1], rtol=1e-4, atol=1e-4)
    assert (both[0] - module(ROWS, WIDTH)["logprobs"]).abs().max() > 0.01
    assert (torch.autograd.grad(both[0].sum(), module.noise.log_coef)[0] != 0).all()


def test_an_architecture_without_a_cache_takes_noise_too():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, state_size=4)).eval()
    policy = Policy(PolicyModule(model), None, "", shared=False)
    policy.module.noise = LOUD.apply(model)
    perturbed = policy.statistics(KEYED, WIDTH, perturbed=SEED)["logprobs"]
    assert (perturbed - policy.statistics(ROWS, WIDTH)["logprobs"]).abs().max() > 1e-3


@pytest.mark.parametrize("config", [{}, {"lora": {"rank": 4, "targets": "all-linear"}}], ids=["whole", "adapters"])
def test_log_coef_is_trained_and_checkpointed_but_neither_exported_nor_synced(config, noisy, tmp_path):
    policy = noisy(config=config)
    assert "noise.log_coef" in dict(policy.trainable())
    optimizer = make_optimizer(policy, Training())
    numbers(policy)["logprobs"].sum().backward()
    optimizer.step()
    assert (policy.module.noise.log_coef.grad != 0).all()
    state = {"stage": 0, "step": 1, "global_step": 1, "recipe": {}}
    path = checkpoint.save(tmp_path, 1, policy, optimizer, state, keep=1)
    again = noisy(LayerNoise(sigma=1e-3), config=config)
    checkpoint.load(path, again, make_optimizer(again, Training()))
    assert torch.equal(again.module.noise.log_coef, policy.module.noise.log_coef)
    assert not [name for name, _ in policy.named_weights() if "noise" in name or "log_coef" in name]
    policy.export(tmp_path / "export")
    if not config:
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
        assert_close(loaded(tensor([[5, 6]])).logits, policy.model(tensor([[5, 6]])).logits, rtol=1e-5, atol=1e-5)


def test_its_own_rate_and_no_decay(noisy):
    policy = noisy(LayerNoise(learning_rate=5e-4))
    *_, group = make_optimizer(policy, Training(learning_rate=1e-6, weight_decay=0.1)).param_groups
    assert group["params"] == [policy.module.noise.log_coef] and group["weight_decay"] == 0.0
    assert 1e-6 * group["rate"] == pytest.approx(5e-4)
