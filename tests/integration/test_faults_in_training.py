"""A full disk, numbers that are none, too little memory, a tracker that is down: what training makes of them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import kills
import pytest
import torch
from helpers import messages_of, rows, trained, weights_of
from kills import KINDS, forked

from llmrl import faults
from llmrl.errors import LlmrlError, TrainingError
from llmrl.loop import Loop
from llmrl.tracking.folder import RunFolder
from llmrl.tracking.log import Log
from llmrl.training import checkpoint
from llmrl.training.losses import Job

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


# --- a full disk


def test_training_goes_on_while_the_disk_is_full(base, oracle, tmp_path):
    """A real one: steps 1 and 2 have no room at all, afterwards there is."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("no right to mount a small file system")
    try:
        filler = small / "filler"

        def work():
            step = Loop.step

            def meanwhile(loop, number):
                done = step(loop, number)
                if number == 0:
                    fill(filler)
                if number == 2:
                    filler.unlink()
                return done

            Loop.step = meanwhile
            kills.run(small, "full", "ppo", training={"steps": 4, "save_every": 1})()

        status = forked(work, tmp_path / "full.log")
        folder = small / "runs" / "full"
        assert status == 0, (tmp_path / "full.log").read_text()
        found = kills.digest(folder)
        alerts = [row for row in found["metrics"] if "alerts/checkpoints" in row]
        assert alerts[-1]["alerts/checkpoints"] == 2 and alerts[-1]["alerts/rollouts"] == 2
        plain = [{k: v for k, v in row.items() if not k.startswith("alerts/")} for row in found["metrics"]]
        assert plain == oracle.digest["metrics"]  # the rows of the full steps were written later
        assert found["weights.safetensors"] == oracle.digest["weights.safetensors"]
        assert found["optimizer.safetensors"] == oracle.digest["optimizer.safetensors"]
        assert not kills.leftovers(folder)
    finally:
        subprocess.run(["umount", small], check=True)


def fill(file: Path) -> None:
    """Take all the room that is left."""
    with file.open("wb", buffering=0) as out:
        for size in (1 << 16, 1 << 12, 1):
            while True:
                try:
                    if not out.write(b"\0" * size):
                        break
                except OSError:
                    break


@pytest.mark.parametrize("point", ["file", "manifest", "metrics"])
def test_a_disk_that_is_full_for_a_moment_costs_an_alert(base, oracle, point, monkeypatch):
    said = messages_of(monkeypatch)
    monkeypatch.setattr(faults, "PLAN", faults.Plan(point, 1, "full"))
    folder = trained(base, f"moment-{point}", **PPO).folder
    what = "metrics" if point == "metrics" else "checkpoints"
    assert any(line.startswith(f"ALERT: {what} cannot be written: [Errno 28] No space left") for line in said)
    assert weights_of(folder) == oracle.digest["final"]
    assert [row["global_step"] for row in rows(folder)] == [1, 2, 3, 4]
    assert not kills.leftovers(folder)


def test_no_checkpoint_is_begun_without_room_for_it(base, monkeypatch):
    said = messages_of(monkeypatch)
    real = os.statvfs
    monkeypatch.setattr(checkpoint.os, "statvfs", lambda path: os.statvfs_result((*real(path)[:4], 1, *real(path)[5:])))
    folder = trained(base, "roomless", **PPO).folder
    assert any("ALERT: checkpoints" in line and "0 MiB free, a checkpoint needs" in line for line in said)
    assert not checkpoint.all_checkpoints(folder) and weights_of(folder)


def test_a_model_that_cannot_be_written_stops_the_run_with_the_next_move(base, monkeypatch):
    monkeypatch.setattr(faults, "PLAN", faults.Plan("exported", 1, "full"))
    with pytest.raises(LlmrlError, match=r"could not be written.*Free some space and repeat the command"):
        trained(base, "unwritten", **PPO)
    monkeypatch.setattr(faults, "PLAN", None)
    assert trained(base, "unwritten", **PPO).folder.name == "unwritten"


# --- numbers and memory


def poisoned(monkeypatch, calls: set[int], value: float) -> None:
    """Some losses, counted from 0, times the value."""
    loss, made = Job.loss, []

    def spoiled(job, *arguments, **options):
        made.append(None)
        out = loss(job, *arguments, **options)
        return out * value if len(made) - 1 in calls else out

    monkeypatch.setattr(Job, "loss", spoiled)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_without_a_finite_gradient_is_skipped(base, monkeypatch, value):
    said = messages_of(monkeypatch)
    after_first = trained(base, f"one-{value}", **GRPO | {"training": {"steps": 1, "save_every": 1}}).folder
    poisoned(monkeypatch, {1}, value)  # the second step of this run
    folder = trained(base, f"two-{value}", **GRPO | {"training": {"steps": 2, "save_every": 1}}).folder
    for name in ("weights.safetensors", "optimizer.safetensors"):
        assert (folder / "checkpoint-2" / name).read_bytes() == (after_first / "checkpoint-1" / name).read_bytes()
    assert [row.get("update/skipped") for row in rows(folder)] == [None, 1]
    assert any("step 2: 1 optimizer steps were skipped" in line for line in said)


def test_too_many_of_them_in_a_row_stop_the_run(base, monkeypatch):
    poisoned(monkeypatch, {0, 2, 3, 4}, float("nan"))
    with pytest.raises(TrainingError, match=r"norm is nan, for the 3\. step of the optimizer in a row"):
        trained(base, "diverged", **GRPO | {"training": {"steps": 6, "save_every": 1}})
    assert checkpoint.newest(base / "runs" / "diverged")[0].name == "checkpoint-4"


def test_a_micro_batch_that_does_not_fit_is_split_and_that_is_remembered(base, monkeypatch):
    said = messages_of(monkeypatch)
    options = GRPO | {"training": {"steps": 3, "save_every": 1}}
    whole = trained(base, "roomy", **options).folder
    loss, sizes = Job.loss, []

    def cramped(job, chosen, *arguments, **settings):
        sizes.append(len(chosen))
        out = loss(job, chosen, *arguments, **settings)
        if len(chosen) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return out

    monkeypatch.setattr(Job, "loss", cramped)
    tight = trained(base, "cramped", **options).folder
    first, second = (checkpoint.load_file(f / "checkpoint-3" / "weights.safetensors") for f in (whole, tight))
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-6, rtol=1e-5)
    assert max(sizes[-4:]) <= 5 and sum(size > 5 for size in sizes) == rows(tight)[0]["update/split"]
    assert "update/split" not in rows(tight)[1]
    assert any("micro-batches did not fit into memory" in line for line in said)
    kept = checkpoint.read_state(tight / "checkpoint-3")["updater"]
    assert kept["budget"] < kept["asked"]


def test_a_row_that_never_fits_is_an_error_that_says_what_to_do(base, monkeypatch):
    def nothing_fits(job, chosen, *arguments, **settings):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Job, "loss", nothing_fits)
    with pytest.raises(TrainingError, match=r"1 rows .* do not fit into memory and cannot be split.*lora"):
        trained(base, "tiny-machine", **GRPO)


# --- around the run


def test_a_tracker_that_is_down_costs_an_alert(tmp_path):
    said, sent = [], []

    def moody(row, step):
        if step < 3:
            raise ConnectionError("connection refused")
        sent.append(step)

    folder = RunFolder.create(tmp_path / "run", "model: {path: here}\n")
    log = Log(folder, said.append, moody)
    for step in (1, 2, 3, 4):
        log.metrics({"global_step": step, "stage": "grpo", "step": step})
    assert sent == [3, 4] and [row["global_step"] for row in folder.metrics()] == [1, 2, 3, 4]
    assert folder.metrics()[-1]["alerts/trackers"] == 2
    assert said == [
        "ALERT: trackers cannot be written: connection refused. Training goes on; metrics.jsonl has every row. Look at what it "
        "says.",
        "trackers are written again, after 2 failures",
    ]


def test_rows_that_cannot_be_used_are_listed_with_their_reasons(base):
    file = base / "rows.jsonl"
    good = [json.dumps({"prompt": f"{n} + {n} =", "reference": str(2 * n)}).encode() for n in range(9)]
    bad = [b'{"prompt": "cut of', b'{"prompt": "\xff"}', b"[1]", b'{"reference": "no prompt"}', b'{"prompt": 7}']
    file.write_bytes(b"\n".join([*good, *bad]))
    folder = trained(base, "rows", **GRPO | {"data": {"source": str(file)}}).folder
    found = [json.loads(line)["reason"] for line in (folder / "quarantine-grpo.jsonl").read_text().splitlines()]
    where = ["rows.jsonl, line 10", "rows.jsonl, line 11", "rows.jsonl: row 10", "row 10", "row 11"]
    assert len(found) == 5 and all(
        reason.startswith((str(base / w), w)) for reason, w in zip(found, where, strict=True)
    )
