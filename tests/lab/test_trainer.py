"""The laboratory's own arithmetic: exact gradients, exact divergences, the same numbers for the same seed."""

from __future__ import annotations

import pytest
import torch

from benchmarks.lab.gradients import cosine, estimates, true_gradient
from benchmarks.lab.tasks import Task, bandit, t1, toy_a
from benchmarks.lab.trainer import Lab, Steps, Table
from llmrl.advantages.group import leave_one_out
from llmrl.algorithm import Algorithm
from llmrl.composition import build
from llmrl.objectives.reinforce import reinforce

PLAIN = Algorithm(objective=(reinforce,), advantage=leave_one_out, reduce="sequence_sum")


def test_the_toys_begin_as_they_are_said_to():
    for seed in range(3):
        task, logits = toy_a(seed)
        assert Lab(task, logits, PLAIN, rate=0.0).expected_reward() == pytest.approx(0.07, abs=1e-4)
        prompts, tokens = task.answers()
        assert len(tokens) == 4 * 125 and task.reward(prompts, tokens).sum() == 8
        task, logits = t1(seed)
        assert logits.shape == (8, 16) and task.reward(*task.answers()).sum() == 8 * 4
    task, logits = toy_a(0, success=0.0016)
    assert Lab(task, logits, PLAIN, rate=0.0).expected_reward() == pytest.approx(0.0016, abs=1e-5)


def test_a_step_is_the_gradient_worked_out_by_hand():
    # two arms, p = 1/2 each, rewards 1 and 0, four rollouts a, a, b, b: A = 2/3 and -2/3;
    # d/dlogit_a of -mean(A log p) = -(2 · 2/3 · 1/2 + 2 · -2/3 · -1/2) / 4 = -1/3
    task, logits = bandit(torch.tensor([1.0, 0.0]))
    lab = Lab(task, logits, PLAIN, rate=0.3, group_size=4)
    lab.sampled = lambda sampler, prompts: torch.tensor([[0], [0], [1], [1]])
    lab.step()
    torch.testing.assert_close(lab.table.logits.detach(), torch.tensor([[0.1, -0.1]]))
    # KL of (1/2, 1/2) to the softmax of (0.1, -0.1): ln cosh 0.1
    assert lab.history.kl[0] == pytest.approx(float(torch.tensor(0.1).cosh().log()), abs=1e-6)
    assert lab.history.reward[0] == pytest.approx(float(torch.tensor(0.2).sigmoid()), abs=1e-6)


def test_leave_one_out_points_where_the_exact_gradient_does():
    task, logits = toy_a(0)
    found = estimates(task, logits, PLAIN, batches=200, group_size=64)
    assert cosine(found.mean, true_gradient(task, logits)) > 0.98
    assert found.mean.norm() == pytest.approx(float(true_gradient(task, logits).norm()), rel=0.1)


def test_states_follow_the_task():
    task = Task(2, 2, 3, lambda p, t: t[:, 0].float(), lambda p, t: 2 * p if not t.shape[1] else 1 + t[:, 0])
    assert task.states(torch.tensor([0, 1]), torch.tensor([[2, 0], [1, 1]])).tolist() == [[0, 3], [2, 2]]


def test_shared_features_begin_with_the_policy_that_was_asked_for():
    features = torch.cat([torch.eye(4), torch.ones(4, 1)], 1)
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Table(logits, features).logits.detach(), logits)


def test_divergences_and_values_of_a_table():
    table, states, tokens = (
        Table(torch.tensor([[0.0, 0.0], [1.0, 0.0]])),
        torch.tensor([[0, 1]]),
        torch.tensor([[0, 1]]),
    )
    other = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    got = table.statistics(states, tokens, other, table.logits.detach())
    p = float(torch.tensor(1.0).sigmoid())
    expected = -0.5 * torch.tensor([2 * p, 2 * (1 - p)]).log().sum()  # KL of the even coin to it
    torch.testing.assert_close(got["old_kl"].detach(), torch.tensor([[0.0, float(expected)]]))
    torch.testing.assert_close(got["ref_kl"].detach(), torch.zeros(1, 2))
    assert (got["expected_values"] == 0).all() and not got["expected_values"].requires_grad


def test_the_same_seed_gives_the_same_numbers():
    def history(seed):
        task, logits = toy_a(0)
        return Lab(task, logits, build({"name": "grpo", "epochs": 2}), rate=3.0, seed=seed).run(5)

    assert history(1) == history(1) != history(2)


def test_rules_of_an_update_find_what_they_ask_for():
    task, logits = toy_a(0)
    lab = Lab(task, logits, build({"name": "fixpo", "minibatches": 2, "epochs": 1}), rate=0.0)
    steps = Steps(lab, lab.credited(lab.collect()), logits)
    minis = steps.minibatches(0)
    assert sorted(row for mini in minis for row in mini.arrays["row_keys"].tolist()) == list(range(32))
    told = steps.measure(minis[0])
    assert told["fixpo/kl"] == pytest.approx(0.0, abs=1e-6) and told["rows"] == 16
    assert all(p.grad is None for p in steps.parameters)
    steps.gradient(minis[0])
    assert steps.step() > 0
