"""Checkpoints, buffers, signals, folders: what a run that was ended goes on from. Kills are in test_kills.py."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import kills
import pytest
import torch
from helpers import messages_of, rollouts, rows, trained, write_recipe
from kills import KINDS, ended_by, forked

from llmrl import faults
from llmrl.errors import CheckpointError, LlmrlError
from llmrl.loop import Loop
from llmrl.training import checkpoint, update

PPO = KINDS["ppo"]
GRPO = {"algorithm": {"name": "grpo"}, "scorers": ["judges:varied"], "training": {"steps": 4, "save_every": 1}}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    kills.prepare(folder)
    return folder


@pytest.fixture(scope="module")
def oracle(base):
    return kills.oracle(base, "ppo")


# --- rollouts that do not come out the same again


def unrepeatable(base: Path, name: str, mood: int, plan: faults.Plan | None = None, **changes) -> int:
    def work():
        os.environ["MOOD"] = str(mood)
        rollout = {"engine": "unrepeatable:Unrepeatable", "prompts_per_step": 2, "group_size": 4}
        kills.run(base, name, "ppo", plan, rollout=rollout, **changes)()

    return forked(work, base / f"{name}.log")


@pytest.mark.parametrize("save_every", [0, 2])
def test_a_resumed_run_trains_on_the_rollouts_that_it_had(base, save_every):
    changes = {"training": {"steps": 4, "save_every": save_every}}
    name = f"moody-{save_every}"
    assert unrepeatable(base, f"{name}-whole", 1, **changes) == 0
    whole = kills.digest(base / "runs" / f"{name}-whole")
    for again, buffered in ((name, True), (f"{name}-without", False)):
        assert os.WIFSIGNALED(unrepeatable(base, again, 1, faults.Plan("stepped", 15, "kill"), **changes))
        folder = base / "runs" / again
        assert {p.name for p in (folder / "buffer").iterdir()} == {
            f"0-{step}-1.jsonl"
            for step in range(save_every, 4)  # a checkpoint holds what came before
        }
        if not buffered:
            shutil.rmtree(folder / "buffer")
        assert unrepeatable(base, again, 2, **changes) == 0
        assert (kills.digest(folder) == whole) == buffered
        assert not list(folder.glob("buffer/*"))


def test_a_buffer_that_is_damaged_or_of_other_steps_is_not_read(base, monkeypatch):
    said = messages_of(monkeypatch)
    changes = {"training": {"steps": 4, "save_every": 0}}
    unrepeatable(base, "spoiled", 1, faults.Plan("stepped", 15, "kill"), **changes)
    buffer = base / "runs" / "spoiled" / "buffer"
    second = buffer / "0-1-1.jsonl"
    second.write_text(second.read_text().replace('"probe": false', '"probe": true', 1))
    monkeypatch.setenv("MOOD", "2")
    kept = [json.loads(line) for line in (buffer / "0-0-1.jsonl").read_text().splitlines()[1:]]
    third = [json.loads(line) for line in (buffer / "0-2-1.jsonl").read_text().splitlines()[1:]]
    rollout = {"engine": "unrepeatable:Unrepeatable", "prompts_per_step": 2, "group_size": 4}
    trained(base, "spoiled", **PPO | changes | {"rollout": rollout})
    assert any("0-1-1.jsonl: its contents are not those that were written" in line for line in said)

    def ids(step):
        return [r["ids"] for r in rollouts(base / "runs" / "spoiled", step)]

    assert ids(1) == [r["ids"] for group in kept for r in group["rollouts"]]
    assert ids(3) != [r["ids"] for group in third for r in group["rollouts"]]  # its weights are not made again


# --- checkpoints


def spoil_flip(file: Path):
    contents = bytearray(file.read_bytes())
    contents[len(contents) // 2] ^= 1
    file.write_bytes(contents)


SPOILS = {
    "flipped": spoil_flip,
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "empty": lambda file: file.write_bytes(b""),
    "gone": Path.unlink,
}


@pytest.mark.parametrize("how", SPOILS)
@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json"])
def test_every_damage_is_found(base, oracle, tmp_path, name, how):
    whole = base / "runs" / "ppo-oracle" / "checkpoint-4"
    copy = shutil.copytree(whole, tmp_path / "checkpoint-4")
    assert checkpoint.damage(copy) is None
    SPOILS[how](copy / name)
    assert checkpoint.damage(copy) is not None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"files": {}}, "lacks optimizer.safetensors, state.json, weights.safetensors"),
        ({"files": []}, "cannot be read"),
        ({"format": 99}, "format 99, this llmrl reads 1 to 2"),
    ],
)
def test_a_manifest_that_promises_nothing_is_not_whole(base, oracle, tmp_path, change, told):
    copy = shutil.copytree(base / "runs" / "ppo-oracle" / "checkpoint-4", tmp_path / "checkpoint-4")
    manifest = json.loads((copy / "MANIFEST.json").read_text())
    assert manifest["processes"] == 1 and manifest["versions"]["torch"] and len(manifest["files"]) == 3
    (copy / "MANIFEST.json").write_text(json.dumps(manifest | change))
    assert told in checkpoint.damage(copy)


def test_latest_names_the_newest_checkpoint_and_can_be_resumed_from(base, oracle):
    latest = base / "runs" / "ppo-oracle" / "latest"
    assert latest.is_symlink() and os.readlink(latest) == "checkpoint-4" and checkpoint.damage(latest) is None


def test_a_run_without_a_whole_checkpoint_is_left_alone(base, monkeypatch):
    said = messages_of(monkeypatch)
    assert ended_by(base, "hopeless", "stepped", 15, "kill") == -signal.SIGKILL
    folder = base / "runs" / "hopeless"
    (folder / "checkpoint-2" / "MANIFEST.json").write_text("{}")
    kept = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    beside = trained(base, "hopeless", **PPO)
    assert beside.folder.name == "hopeless-2" and {p: p.read_bytes() for p in kept} == kept
    assert any("checkpoint-2: its manifest cannot be read" in line for line in said)
    assert any("no checkpoint that is whole" in line for line in said)


def test_a_run_that_has_no_checkpoint_yet_begins_again_in_its_folder(base, oracle, monkeypatch):
    said = messages_of(monkeypatch)
    assert ended_by(base, "early", "stepped", 5, "kill") == -signal.SIGKILL  # in the second step, before checkpoint-2
    folder = base / "runs" / "early"
    assert rows(folder) and not checkpoint.all_checkpoints(folder)
    assert trained(base, "early", **PPO).folder == folder
    assert any("ended before its first checkpoint and begins again" in line for line in said)
    assert not kills.differences(oracle, folder)


def test_one_of_another_recipe_is_left_alone(base):
    assert ended_by(base, "other", "stepped", 5, "kill") == -signal.SIGKILL
    assert trained(base, "other", **PPO | {"seed": 5}).folder.name == "other-2"


def test_a_checkpoint_of_another_model_or_without_its_keys_is_refused_by_name(base, oracle, tmp_path, make_policy):
    copy = shutil.copytree(base / "runs" / "ppo-oracle" / "checkpoint-4", tmp_path / "checkpoint-4")
    policy = make_policy()
    with pytest.raises(CheckpointError, match="does not belong to this model: .* differ in name or shape"):
        checkpoint.load(copy, policy, torch.optim.AdamW(policy.module.parameters()))
    (copy / "weights.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(CheckpointError, match="cannot be read: .*another checkpoint"):
        checkpoint.load(copy, policy, torch.optim.AdamW(policy.module.parameters()))
    (copy / "state.json").write_text('{"stage": 0}')
    with pytest.raises(CheckpointError, match="lacks global_step, optimizer, recipe, step"):
        checkpoint.read_state(copy)


# --- being asked to end


@pytest.mark.parametrize("point", ["generated", "passed", "differentiated", "stepped", "file", "reported"])
@pytest.mark.parametrize(("action", "status"), [("terminate", 143), ("interrupt", 130)])
def test_asked_to_end_it_keeps_what_is_done_and_goes_on(base, oracle, point, action, status):
    name, before = f"asked-{point}-{action}", kills.children()
    nth = {"generated": 2, "passed": 2, "differentiated": 6, "stepped": 6, "file": 1, "reported": 2}[point]
    changes = {"training": {"steps": 4, "save_every": 0}} if point != "file" else {}
    assert ended_by(base, name, point, nth, action, **changes) == status
    folder = base / "runs" / name
    # in the second step: before its update the first one is kept, from then on the second one, too
    assert [c.name for c in checkpoint.all_checkpoints(folder)] == [
        f"checkpoint-{1 if point in ('generated', 'passed') else 2}"
    ]
    assert not list(folder.rglob("*.tmp-*")) and not kills.orphans(before)
    assert forked(kills.run(base, name, "ppo", **changes), base / f"{name}.log") == 0
    assert not kills.differences(oracle, folder)


def slow_step(seconds: float):
    """Steps whose update takes so long."""
    step = update.Problem.step

    def slowly(problem):
        time.sleep(seconds)
        return step(problem)

    update.Problem.step = slowly


def test_a_step_that_outlasts_the_grace_is_given_up(base, oracle):
    def work():
        slow_step(60.0)
        kills.run(base, "late", "ppo", faults.Plan("differentiated", 1, "terminate"), grace=1.0)()

    before = kills.children()
    assert os.waitstatus_to_exitcode(forked(work, base / "late.log")) == 143
    assert not kills.orphans(before)
    assert forked(kills.run(base, "late", "ppo"), base / "late.log") == 0
    assert not kills.differences(oracle, base / "runs" / "late")


def test_a_second_interrupt_ends_at_once(base, oracle):
    def work():
        step = Loop.step

        def pressed_twice(loop, number):
            if number == 2:
                loop.hold()
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(kills.PATIENCE)
            return step(loop, number)

        Loop.step = pressed_twice
        kills.run(base, "impatient", "ppo", training={"steps": 4, "save_every": 0})()

    before = kills.children()
    assert os.waitstatus_to_exitcode(forked(work, base / "impatient.log")) == 130
    assert not checkpoint.all_checkpoints(base / "runs" / "impatient") and not kills.orphans(before)
    assert forked(kills.run(base, "impatient", "ppo"), base / "impatient.log") == 0
    assert not kills.differences(oracle, base / "runs" / "impatient")


# --- whose folder it is


def test_two_starts_of_one_recipe(base, tmp_path):
    def work():
        step = Loop.step

        def with_a_rival(loop, number):
            if number == 0:
                with pytest.raises(LlmrlError, match=f"in use by process {os.getpid()} on "):
                    trained(base, "rival", **PPO)
            return step(loop, number)

        Loop.step = with_a_rival
        trained(base, "rival", **PPO)

    assert forked(work, tmp_path / "rival.log") == 0, (tmp_path / "rival.log").read_text()


def test_drafts_of_killed_processes_are_cleared_at_the_next_start(base):
    assert ended_by(base, "drafts", "file", 5, "kill") == -signal.SIGKILL
    folder = base / "runs" / "drafts"
    assert kills.leftovers(folder)
    trained(base, "drafts", **PPO)
    assert not kills.leftovers(folder)


def test_the_recipe_file_is_only_written_by_hand(tmp_path):
    """A folder that holds something else than a run is not taken for one."""
    mine = tmp_path / "runs" / "run"
    mine.mkdir(parents=True)
    (mine / "notes.txt").write_text("mine")
    assert trained(tmp_path, **PPO).folder.name == "run-2"
    assert write_recipe(tmp_path).exists() and (mine / "notes.txt").read_text() == "mine"
