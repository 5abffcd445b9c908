"""Sampling ahead of training: which weights write what, what is trained on, and what a stop or a kill leaves."""

from __future__ import annotations

import os
import random
import threading
import time

import kills
import pytest
import torch
from helpers import interrupted, messages_of, rollouts, rows, trained, weights_of, write_recipe
from kills import KINDS, forked
from own_weights import OwnWeights
from test_processes import same_rows, two_processes

from llmrl import faults
from llmrl.ahead import Ahead, GivenUp
from llmrl.errors import RolloutError, ScoringError, TrainingError
from llmrl.training import checkpoint, update
from llmrl.training.buffer import Dealt
from llmrl.training.update import Updater

STEPS = 6
TIS = {
    "algorithm": {"name": "tis"},
    "scorers": ["judges:varied"],
    "training": {"steps": STEPS, "learning_rate": 1e-2},
    "rollout": {"engine": {"name": "own_weights:OwnWeights"}},
}
SIX = {"data": {"source": {"name": "addition", "size": 6}}, "scorers": ["judges:varied"], "every": 2}
HELD_OUT = {"evaluation": {"held-out": SIX}}
REFILLED = {"algorithm": {"name": "dapo", "shaping": ["importance_weights"]}, "scorers": ["judges:seldom"]}


def ahead(steps: int, **engine) -> dict:
    return {"staleness": steps, "engine": {"name": "own_weights:OwnWeights"} | engine}


def run(folder, name, steps, engine=None, **sections):
    """Such a run, each section laid over that of TIS."""
    every = TIS | sections | {"rollout": sections.get("rollout", {}) | ahead(steps, **engine or {})}
    return trained(folder, name, **every).folder


def everything(folder):
    return (
        rows(folder),
        weights_of(folder),
        [rollouts(folder, s) for s in range(1, len(rows(folder, "loss/total")) + 1)],
    )


def writer(step: int, steps: int) -> int:
    """The version of the weights that write the answers of a step, counted from 0."""
    return (step - 1) // steps * steps if step else 0


def versions(folder) -> list[set[int]]:
    return [{r["version"] for r in rollouts(folder, step)} for step in range(1, STEPS + 1)]


def test_0_is_the_run_without_it(tmp_path, monkeypatch):
    monkeypatch.setattr(Ahead, "__init__", None)
    plain = {key: value for key, value in TIS.items() if key != "rollout"}
    without = trained(tmp_path, "without", **plain).folder
    with_it = trained(tmp_path, "with", **plain | {"rollout": {"staleness": 0}}).folder
    assert everything(with_it) == everything(without)
    assert versions(with_it) == [{step} for step in range(STEPS)]
    assert not any(key.startswith("rollout/stale") for row in rows(with_it) for key in row)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_steps_alone_say_which_weights_write_and_none_are_older_than_allowed(tmp_path, steps):
    whole = run(tmp_path, "whole", steps)
    assert versions(whole) == [{writer(step, steps)} for step in range(STEPS)]
    for step, row in enumerate(rows(whole, "loss/total")):
        age = step - writer(step, steps)
        assert row["rollout/staleness"] == row["rollout/staleness/max"] == age <= steps
    expected = everything(whole)
    train, rng = Updater.update, random.Random(steps)

    def slow(*given, **options):
        time.sleep(rng.random() * 0.1)
        return train(*given, **options)

    for seed in range(3):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Updater, "update", slow)
            late = run(tmp_path, f"late-{seed}", steps, {"delays": seed})
        assert everything(late) == expected


def test_the_next_answers_are_written_while_a_step_trains(tmp_path, monkeypatch):
    train, updates, calls = Updater.update, [threading.Event() for _ in range(STEPS)], []
    began = [threading.Event() for _ in range(STEPS)]

    def meet(version, prompts):
        step = len(calls)
        calls.append(version)
        began[step].set()
        if step:  # nobody writes the answers of a step to the end before the step ahead of it has begun to train
            assert updates[step - 1].wait(120)

    def update(*given, **options):
        step = sum(one.is_set() for one in updates)
        updates[step].set()
        if step + 1 < STEPS:  # and that does not end before they are begun
            assert began[step + 1].wait(120)
        return train(*given, **options)

    monkeypatch.setattr(OwnWeights, "meet", staticmethod(meet))
    monkeypatch.setattr(Updater, "update", update)
    run(tmp_path, "run", 1)
    assert calls == [writer(step, 1) for step in range(STEPS)]


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("sections", [{}, HELD_OUT, REFILLED])
def test_interrupted_runs_go_on_with_the_same_numbers(tmp_path, steps, sections):
    every = TIS | sections | {"training": TIS["training"] | {"save_every": 2}}
    expected = everything(run(tmp_path, "whole", steps, **every))
    for done in (1, 3, 4):
        name = f"killed-{done}"
        interrupted(tmp_path, done, name, **every | {"rollout": ahead(steps)})
        assert everything(run(tmp_path, name, steps, **every)) == expected
        assert not list((tmp_path / "runs" / name).glob("buffer/*"))


def test_answers_that_nobody_would_give_again_are_those_of_the_checkpoint(tmp_path, monkeypatch):
    training = {"training": TIS["training"] | {"save_every": 2}}
    for name, lost in (("kept", False), ("lost", True)):
        monkeypatch.setenv("MOOD", "1")
        interrupted(tmp_path, 2, name, **TIS | training | {"rollout": ahead(2)})
        folder = tmp_path / "runs" / name
        buffer = sorted((folder / "buffer").iterdir())
        assert [path.name for path in buffer] == ["0-2-1.jsonl"]  # steps 1 and 2 were begun together
        held = buffer[0].read_text()
        if lost:
            buffer[0].unlink()
        monkeypatch.setenv("MOOD", "2")
        said = messages_of(monkeypatch)
        run(tmp_path, name, 2, **training)
        assert all(str(r["ids"])[1:-1] in held for r in rollouts(folder, 3)) == (not lost)
        assert {r["version"] for r in rollouts(folder, 3)} == ({2} if lost else {0})
        assert any("careful: what older weights had answered for step 3 is gone" in line for line in said) == lost


def test_evaluations_are_of_the_weights_in_training(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(OwnWeights, "meet", staticmethod(lambda v, prompts: asked.append((v, len(prompts)))))
    folder = run(tmp_path, "run", 3, **HELD_OUT)
    assert [version for version, prompts in asked if prompts == 6] == [0, 2, 4, 6]
    assert versions(folder) == [{writer(step, 3)} for step in range(STEPS)]


def test_further_prompts_of_a_step_are_answered_by_the_weights_of_now(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(OwnWeights, "meet", staticmethod(lambda v, prompts: asked.append(v)))
    run(tmp_path, "run", 1, **REFILLED)
    assert len(asked) > STEPS and sorted(asked) == asked


def test_what_goes_wrong_in_the_thread_ends_the_run(tmp_path):
    with pytest.raises(RolloutError, match="the engine is gone"):
        run(tmp_path, "run", 2, {"fails": 3})
    assert not [one for one in threading.enumerate() if one.name == "ahead"]
    assert rows(tmp_path / "runs" / "run", "loss/total")


def test_what_goes_wrong_in_the_thread_costs_no_step_before_it(tmp_path):
    with pytest.raises(RolloutError, match="the engine is gone"):
        run(tmp_path, "run", 1, {"fails": 3}, training=TIS["training"] | {"save_every": 1})
    assert checkpoint.newest(tmp_path / "runs" / "run")[0].name == "checkpoint-2"


def test_a_judge_that_was_down_is_asked_again(tmp_path, monkeypatch):
    down, asked = tmp_path / "down", []
    monkeypatch.setenv("JUDGE_DOWN", str(down))

    def meet(version, prompts):
        asked.append(version)
        if len(asked) == 3:
            down.touch()

    monkeypatch.setattr(OwnWeights, "meet", staticmethod(meet))
    sections = {"scorers": ["judges:reachable"], "training": TIS["training"] | {"save_every": 1}}
    with pytest.raises(ScoringError, match="the judge is down"):
        run(tmp_path, "run", 1, **sections)
    down.unlink()
    assert len(rows(run(tmp_path, "run", 1, **sections), "loss/total")) == STEPS


def test_closed_while_a_judge_is_waited_for_the_thread_ends(tmp_path, monkeypatch):
    slow, met = tmp_path / "slow", []
    monkeypatch.setenv("JUDGE_DOWN", str(tmp_path / "down"))
    monkeypatch.setenv("JUDGE_SLOW", str(slow))
    monkeypatch.setattr(OwnWeights, "meet", staticmethod(lambda *_: met.append(len(met) > 0 and slow.touch())))

    def fail(*given, **options):
        while len(met) < 2:
            time.sleep(0.01)
        time.sleep(1.0)  # its answers are written, and being judged
        raise ZeroDivisionError

    monkeypatch.setattr(Updater, "update", fail)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, "run", 1, scorers=["judges:reachable"])
    assert not [one for one in threading.enumerate() if one.name == "ahead"]


def test_closed_the_thread_ends_at_its_next_turn():
    ahead, at_work = Ahead(1, 0), threading.Event()

    def answer(dealt):
        at_work.set()
        while True:
            ahead.breathe()
            time.sleep(0.01)

    ahead.begin([(Dealt(0, 1, 0, 0, [], []), None)], answer)
    assert at_work.wait(60)
    thread = ahead.thread
    ahead.close()
    assert not thread.is_alive()
    with pytest.raises(GivenUp):
        ahead.wait_for(0)


def test_a_run_that_fails_closes_it(tmp_path, monkeypatch):
    closed, close = [], Ahead.close
    monkeypatch.setattr(Ahead, "close", lambda ahead: closed.append(close(ahead)))
    monkeypatch.setattr(Updater, "update", lambda *given, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, "run", 1)
    assert closed == [None]


def test_older_rows_are_refused_where_the_batch_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr("llmrl.run.StageRun.catch_up", lambda stage: stage.ahead.drain())  # and never a sync
    with pytest.raises(TrainingError, match="weights that are 2 updates old; expected 1 at most"):
        run(tmp_path, "run", 1)


def test_the_alarm_for_other_weights_hears_only_of_answers_by_those_of_now(tmp_path):
    found = rows(run(tmp_path, "run", 1, training=TIS["training"] | {"max_logprob_gap": 1e-4}), "loss/total")
    assert found[0]["rollout/logprob_gap_mean"] < 1e-4 and "rollout/stale_gap_mean" not in found[0]
    for row in found[1:]:
        assert row["rollout/stale_gap_mean"] > 1e-4 and "rollout/logprob_gap_mean" not in row


@pytest.mark.parametrize("minibatches", [1, 2])
def test_weights_are_the_ratio_of_the_trainers_policy_to_the_one_that_wrote(tmp_path, monkeypatch, minibatches):
    seen, train = [], Updater.update

    def watched(updater, batch, *given, **options):
        rows = update.run_pass(updater.policy, batch, 4096)["logprobs"]
        ratio = (rows - batch.arrays["rollout_logprobs"]).exp().clamp(0, 2)
        mask = batch.arrays["loss_mask"]
        torch.testing.assert_close(batch.arrays["weights"][mask], ratio[mask], rtol=1e-4, atol=1e-5)
        seen.append(float((ratio[mask] - 1).abs().max()))
        return train(updater, batch, *given, **options)

    monkeypatch.setattr(Updater, "update", watched)
    run(tmp_path, "run", 1, algorithm={"name": "tis", "minibatches": minibatches})
    assert seen[0] < 1e-4 and min(seen[1:]) > 1e-3


def test_a_clip_is_around_the_policy_that_wrote_where_the_recipe_says_so(tmp_path):
    plain = {"name": "grpo", "shaping": ["importance_weights"]}
    to_sampler = {"name": "grpo", "shaping": ["ratio_to_sampler"]}
    beside, around = (
        [row["ratio/clip_fraction"] for row in rows(run(tmp_path, name, 1, algorithm=algorithm), "loss/total")]
        for name, algorithm in (("beside", plain), ("around", to_sampler))
    )
    assert not any(beside)  # one update a batch: the policy is the one that it began with
    assert around[0] == 0 and all(around[1:])


def test_what_looks_at_a_mini_batch_sees_how_far_the_policy_is_from_the_one_that_wrote(tmp_path):
    norms = [
        [
            row["gradient/norm"]
            for row in rows(
                run(
                    tmp_path,
                    f"m2po-{threshold}",
                    1,
                    algorithm={
                        "name": "m2po",
                        "minibatches": 1,
                        "threshold": threshold,
                        "shaping": ["ratio_to_sampler"],
                    },
                ),
                "loss/total",
            )
        ]
        for threshold in (1e-6, 1e6)
    ]
    strict, loose = norms
    assert strict[0] == loose[0] and strict[1] != loose[1]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped")
    kills.prepare(folder)
    return folder


@pytest.mark.parametrize(("action", "status"), [("terminate", 143), ("interrupt", 130)])
@pytest.mark.parametrize("point", ["passed", "stepped"])
def test_asked_to_end_while_the_thread_is_at_work_it_ends_and_goes_on(base, action, status, point):
    slow = {"rollout": KINDS["ahead"]["rollout"] | {"engine": {"name": "own_weights:OwnWeights", "delays": 1}}}
    oracle, name, before = kills.oracle(base, "ahead", **slow), f"{action}-{point}", kills.children()
    log = base / f"{name}.log"
    found = forked(kills.run(base, name, "ahead", faults.Plan(point, 3, action), **slow), log)
    assert os.waitstatus_to_exitcode(found) == status, log.read_text()
    assert not kills.orphans(before)
    # what was done is kept: with it what was begun
    saved = 2 if point == "passed" else 3
    assert checkpoint.step_of(checkpoint.newest(base / "runs" / name)[0]) == saved
    assert forked(kills.run(base, name, "ahead", **slow), log) == 0, log.read_text()
    differ = kills.differences(oracle, base / "runs" / name)
    assert set(differ) <= ({"checkpoint"} if point == "stepped" else set())


def test_a_grace_that_is_too_short_for_what_is_begun_leaves_the_checkpoint_before(base):
    slow = {"rollout": KINDS["ahead"]["rollout"] | {"engine": {"name": "own_weights:OwnWeights", "hangs": 4}}}
    status = forked(
        kills.run(base, "hung", "ahead", faults.Plan("stepped", 3, "terminate"), **slow, grace=1.0), base / "log"
    )
    assert os.waitstatus_to_exitcode(status) == 143
    assert checkpoint.step_of(checkpoint.newest(base / "runs" / "hung")[0]) == 2


@pytest.mark.processes
def test_two_processes_do_what_one_does(tmp_path):
    every = TIS | HELD_OUT | {"rollout": ahead(2) | {"prompts_per_step": 5}}
    alone = trained(tmp_path, "alone", **every).folder
    two_processes(write_recipe(tmp_path, "both", **every))
    both = tmp_path / "runs" / "both"
    same_rows(rows(both), rows(alone))
    assert versions(both) == versions(alone) == [{writer(step, 2)} for step in range(STEPS)]
