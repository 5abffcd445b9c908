"""Update rules: their numerics on tables small enough to follow, and on a network behind a small problem."""

import copy

import pytest
import torch
from torch import nn, tensor
from torch.testing import assert_close

from llmrl.errors import TrainingError
from llmrl.objectives.policy import clipped_surrogate
from llmrl.ops.solve import conjugate_gradient
from llmrl.regularizers.fixpo import FixpoPenalty
from llmrl.regularizers.kl import kl_old
from llmrl.updates.epochs import Epochs
from llmrl.updates.fixpo import Fixpo, fix_up
from llmrl.updates.trpo import Trpo, line_search, natural_step

WIDE = 1e9


class Table(nn.Module):
    """One softmax a state."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(tensor(logits, dtype=torch.float64))

    def forward(self, states):
        return self.logits[states].log_softmax(-1)


class Toy:
    """The least that an update rule needs: tokens one by one, a minibatch an index, plain descent.

    old: log-probabilities that the divergence is measured from; those of the policy now when none are given.
    """

    def __init__(self, policy, states, actions, advantages, parts, *, minibatches=1, epochs=1, rate=0.5, old=None):
        self.policy, self.parts, self.rate, self.epochs = policy, parts, rate, epochs
        self.states, self.actions, self.advantages = tensor(states), tensor(actions), tensor(advantages).double()
        self.parameters = list(policy.parameters())
        self.memories = {name: part.init() for name, part in parts.items() if hasattr(part, "init")}
        self.old = policy(self.states).detach() if old is None else old
        self.indices = torch.arange(len(states)).tensor_split(minibatches)
        self.steps, self.told = 0, {}

    def minibatches(self, epoch):
        return self.indices

    def loss(self, rows, only):
        now, old = self.policy(self.states[rows]), self.old[rows]
        actions = self.actions[rows, None]
        arrays = {
            "old_kl": (old.exp() * (old - now)).sum(-1),
            "surrogate": (now.gather(1, actions).squeeze(1), old.gather(1, actions).squeeze(1), self.advantages[rows]),
        }
        total, told = torch.zeros((), dtype=torch.float64), {}
        for name, part in self.parts.items():
            if only is not None and name not in only:
                continue
            if name == "surrogate":
                loss = clipped_surrogate(*arrays["surrogate"], clip_low=WIDE, clip_high=WIDE)
            elif name in self.memories:
                loss = part.apply(self.memories[name], arrays["old_kl"])
            else:
                loss = part(arrays["old_kl"])
            total = total + loss.values.mean()
            told |= {stat: float(x.double().mean()) for stat, x in loss.stats.items()}
            told |= {f"{stat}/max": float(x.double().max()) for stat, x in loss.stats.items()}
        return total, told | {"loss": float(total.detach()), "rows": float(len(rows))}

    def gradient(self, rows, only=None):
        total, self.told = self.loss(rows, only)
        total.backward()
        return self.told

    @torch.no_grad()
    def measure(self, rows, only=None):
        return self.loss(rows, only)[1]

    @torch.no_grad()
    def step(self):
        norm = torch.cat([p.grad.flatten() for p in self.parameters]).norm()
        for p in self.parameters:
            p -= self.rate * p.grad
        self.zero()
        self.steps += 1
        for name, state in self.memories.items():
            self.memories[name] = self.parts[name].observe(state, self.told)
        return float(norm)

    def zero(self):
        for p in self.parameters:
            p.grad = None


def run(rule, problem):
    told, state = rule.apply(rule.init(), problem)
    assert state == rule.init() and all(p.grad is None for p in problem.parameters)
    return told


def trust(policy, states, actions, advantages, **options):
    return Toy(policy, states, actions, advantages, {"surrogate": clipped_surrogate, "kl_old": kl_old}, **options)


def test_conjugate_gradient_solves_what_it_is_given():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    matrix, b = root @ root.T + torch.eye(6), torch.randn(6, generator=generator, dtype=torch.float64)
    x = conjugate_gradient(lambda v: matrix @ v, b, iterations=20, tolerance=1e-24)
    assert_close(x, torch.linalg.solve(matrix, b))
    assert conjugate_gradient(lambda v: v, torch.zeros(3)).eq(0).all()


def test_a_natural_step_has_the_divergence_that_was_asked_for():
    fisher, slope = torch.diag(tensor([4.0, 1.0])), tensor([2.0, 1.0])
    step = natural_step(slope, lambda v: fisher @ v, max_kl=0.02)
    assert_close(0.5 * step @ fisher @ step, tensor(0.02))
    assert_close(step / step[0], tensor([1.0, 2.0]))  # F⁻¹g = (½, 1)
    assert natural_step(torch.zeros(2), lambda v: fisher @ v, max_kl=0.02).eq(0).all()


def test_a_line_search_halves_until_everything_holds():
    # the surrogate promises 1 for the whole step and keeps 0.05, 0.2, then enough; the divergence is past 0.3 at ½
    kept = {0.0: (5.0, 0.0), 1.0: (4.95, 0.1), 0.5: (4.8, 0.4), 0.25: (4.9, 0.2)}
    assert line_search(kept.__getitem__, 1.0, max_kl=0.3) == (0.25, 4.9, 0.2)
    assert line_search(lambda share: (5.0, 0.0), 1.0, max_kl=0.3).share == 0  # nothing falls
    assert line_search(lambda share: (5.0 - share, share), 1.0, max_kl=1e-9).share == 0  # everything is too far


def test_trpo_on_the_worked_table():
    policy = Table([[0.5, 0.0, -0.5]])
    told = run(Trpo(), trust(policy, [0, 0, 0, 0], [0, 1, 2, 1], [1, -0.5, 0.2, 0.3]))
    expected = tensor([[0.632663, -0.154751, -0.477911]], dtype=torch.float64)
    assert_close(policy.logits.detach(), expected, rtol=0, atol=1e-6)
    assert told["trust/kl"] == pytest.approx(0.00770180, abs=1e-7)
    assert told["trust/share"] == told["update/steps"] == 1


def network(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Embedding(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.LogSoftmax(-1)).to(dtype)


STATES, ACTIONS = [0, 1, 2, 3, 0, 1, 2, 3], [0, 1, 2, 0, 1, 2, 0, 1]
ADVANTAGES = [1.0, -1, 0.5, -0.5, 2, -2, 0.3, 1]


@pytest.mark.parametrize("max_kl", [0.001, 0.01, 0.1])
@pytest.mark.parametrize("minibatches", [1, 2])
def test_trpo_never_leaves_its_region_and_never_makes_the_surrogate_worse(max_kl, minibatches):
    policy = network()
    problem = trust(policy, STATES, ACTIONS, ADVANTAGES, minibatches=minibatches)
    everything = torch.arange(8)
    before = problem.measure(everything, {"surrogate"})["loss"]
    told = run(Trpo(max_kl=max_kl), problem)
    assert problem.measure(everything, {"surrogate"})["loss"] < before - 1e-3
    assert 0.1 * max_kl < told["trust/kl"] <= max_kl
    assert told["gradient/norm"] > 0


def test_trpo_finds_the_step_that_the_exact_fisher_matrix_gives():
    policy, damping = network(), 0.1
    problem = trust(policy, STATES, ACTIONS, ADVANTAGES)
    start = nn.utils.parameters_to_vector(policy.parameters()).detach()

    def divergence(vector):
        shapes = {n: p.shape for n, p in policy.named_parameters()}
        pieces = vector.split([s.numel() for s in shapes.values()])
        named = {n: piece.view(s) for piece, (n, s) in zip(pieces, shapes.items(), strict=True)}
        now = torch.func.functional_call(policy, named, (problem.states,))
        return (problem.old.exp() * (problem.old - now)).sum(-1).mean()

    fisher = torch.autograd.functional.hessian(divergence, start) + damping * torch.eye(len(start))
    problem.gradient(torch.arange(8), {"surrogate"})
    slope = torch.cat([p.grad.flatten() for p in policy.parameters()])
    problem.zero()
    x = torch.linalg.solve(fisher, -slope)
    expected = start + x * (2 * 0.01 / (x @ fisher @ x)).sqrt()
    run(Trpo(damping=damping, iterations=60), problem)
    found = nn.utils.parameters_to_vector(policy.parameters()).detach()
    assert_close(found, expected, rtol=0, atol=1e-5)


def test_trpo_stays_where_nothing_is_credited():
    policy = network()
    before = copy.deepcopy(policy.state_dict())
    told = run(Trpo(), trust(policy, STATES, ACTIONS, [0.0] * 8))
    assert told["trust/share"] == told["update/steps"] == 0
    assert all(torch.equal(x, before[n]) for n, x in policy.state_dict().items())


def test_trpo_refuses_a_gradient_that_is_no_number():
    with pytest.raises(TrainingError, match="not finite"):
        Trpo().apply({}, trust(network(), STATES, ACTIONS, [float("nan")] * 8))


def fixed(logits, old, **options):
    penalty = FixpoPenalty(bound=0.2)
    policy = Table(logits)
    rows = list(range(len(logits)))
    parts = {"FixpoPenalty": penalty}
    return Toy(
        policy, rows, [0] * len(rows), [0.0] * len(rows), parts, old=tensor(old).double().log_softmax(-1), **options
    )


def sweep(problem, bound=0.2, max_steps=100):
    def divergence(rows):
        return problem.measure(rows, {"FixpoPenalty"})["fixpo/kl/max"]

    def step(rows):
        problem.gradient(rows, {"FixpoPenalty"})
        problem.step()

    return fix_up(problem.indices, divergence, step, bound=bound, max_steps=max_steps)


FAR, START = [[2.0, 0.0, -1.0], [0.3, 0.0, 0.0]], [[0.0] * 3] * 2


def test_fix_up_on_the_worked_table():
    problem = fixed(FAR, START)
    outcome = sweep(problem)
    assert outcome.steps == problem.steps == 9 and outcome.done
    assert problem.memories["FixpoPenalty"]["beta"] == pytest.approx(1.08223, abs=5e-6)
    expected = [[1.078651, 0.329362, -0.408013], [0.18614, 0.05693, 0.05693]]
    assert_close(problem.policy.logits.detach(), tensor(expected).double(), rtol=0, atol=1e-6)
    left = [problem.measure(tensor([row]))["fixpo/kl/max"] for row in range(2)]
    assert left == pytest.approx([0.176644, 0.001881], abs=1e-6)
    assert outcome.largest == max(left)


def test_fix_up_sweeps_again_until_no_mini_batch_is_outside():
    problem = fixed(FAR, START, minibatches=2)
    outcome = sweep(problem)
    assert outcome.done and outcome.largest <= 0.2
    assert sweep(problem).steps == 0  # nothing is left to do


def test_fix_up_gives_up_after_the_steps_it_may_make():
    problem = fixed(FAR, START)
    assert sweep(problem, max_steps=3)[:2] == (3, False)
    assert problem.steps == 3


def fixpo_problem(rate=20.0, **options):
    parts = {"surrogate": clipped_surrogate, "FixpoPenalty": FixpoPenalty(bound=0.05)}
    return Toy(network(), STATES, ACTIONS, ADVANTAGES, parts, rate=rate, **options)


@pytest.mark.parametrize("after", ["every_epoch", "last_epoch"])
@pytest.mark.parametrize("rate", [0.5, 5.0])
def test_fixpo_leaves_no_token_past_the_bound(after, rate):
    problem = fixpo_problem(rate, epochs=4, minibatches=2)
    free = trust(network(), STATES, ACTIONS, ADVANTAGES, rate=rate, epochs=4, minibatches=2)
    run(Epochs(), free)
    assert max(free.measure(rows, {"kl_old"})["trust/kl/max"] for rows in free.indices) > 0.05
    told = run(Fixpo(bound=0.05, after=after, max_steps=1000), problem)
    largest = max(problem.measure(rows, {"FixpoPenalty"})["fixpo/kl/max"] for rows in problem.indices)
    assert largest == pytest.approx(told["trust/kl"]) and largest <= 0.05
    assert told["fixpo/steps"] == problem.steps - 8
    assert (told["fixpo/restored"] > 0) == (rate == 5.0)  # descent at that rate does not settle: it goes back


def test_fixpo_goes_back_to_where_it_last_was_inside_when_steps_run_out():
    problem = fixpo_problem(epochs=1)
    before = copy.deepcopy(problem.policy.state_dict())
    told = run(Fixpo(bound=0.05, max_steps=1), problem)
    assert (told["fixpo/steps"], told["fixpo/restored"]) == (1, 1)
    assert all(torch.equal(x, before[n]) for n, x in problem.policy.state_dict().items())


def test_the_ordinary_rule_makes_a_step_for_every_mini_batch():
    problem = trust(network(), STATES, ACTIONS, ADVANTAGES, epochs=3, minibatches=4)
    before = problem.measure(torch.arange(8))["loss"]
    run(Epochs(), problem)
    assert problem.steps == 12 and problem.measure(torch.arange(8))["loss"] < before
