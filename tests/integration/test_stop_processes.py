"""Two processes that are asked to end do it together, and the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from helpers import rows, trained, weights_of, write_recipe

from llmrl.training import checkpoint

pytestmark = pytest.mark.processes
PATIENCE = 300.0
PLAIN = {
    "algorithm": {"name": "grpo"},
    "scorers": ["judges:varied"],
    "training": {"steps": 400, "save_every": 0},
    "rollout": {"prompts_per_step": 2},
    "grace": 60.0,
}


def started(recipe: Path) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-m", "llmrl.cli", "train", str(recipe), "--num-processes", "2"]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def waited(run: subprocess.Popen, metrics: Path) -> None:
    """Until the run has made three steps."""
    deadline = time.monotonic() + PATIENCE
    while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        assert run.poll() is None and time.monotonic() < deadline, run.communicate()[0][-4000:]
        time.sleep(0.05)


def running(recipe: Path) -> list[str]:
    """Command lines that name the recipe."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = process.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        found += [line] if str(recipe) in line else []
    return found


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_two_processes_end_together_and_leave_none(tmp_path, number, status):
    recipe = write_recipe(tmp_path, "both", **PLAIN)
    folder = tmp_path / "runs" / "both"
    run = started(recipe)
    waited(run, folder / "metrics.jsonl")
    run.send_signal(number)
    said = run.communicate(timeout=PATIENCE)[0]
    assert run.returncode == status, said[-4000:]
    newest, refused = checkpoint.newest(folder)
    assert not refused and checkpoint.step_of(newest) == rows(folder)[-1]["global_step"] >= 3
    assert checkpoint.processes_of(newest) == 2 and not running(recipe)
    if number == signal.SIGTERM:
        done = checkpoint.step_of(newest)
        shorter = PLAIN | {"training": {"steps": done + 2, "save_every": 0}}
        resumed = trained(tmp_path, "both", **shorter)  # one process goes on with what two have begun
        assert len(rows(resumed.folder)) == done + 2 and weights_of(resumed.folder)


def tree(pid: int) -> set[int]:
    """The process and everything that it has started, in whatever session."""
    return {pid} | {child.pid for child in psutil.Process(pid).children(recursive=True)}


@pytest.mark.parametrize("who", ["launcher", "agent"])
def test_no_process_outlives_a_launcher_that_is_killed(tmp_path, who):
    recipe = write_recipe(tmp_path, "orphans", **PLAIN)
    run = started(recipe)
    waited(run, tmp_path / "runs" / "orphans" / "metrics.jsonl")
    everyone = tree(run.pid)
    assert len(everyone) >= 8  # launcher, agent, two ranks, and each rank's scorers
    os.kill(run.pid if who == "launcher" else psutil.Process(run.pid).children()[0].pid, signal.SIGKILL)
    deadline = time.monotonic() + 10.0
    while left := [pid for pid in everyone - {run.pid} if alive(pid)]:
        assert time.monotonic() < deadline, [psutil.Process(pid).cmdline() for pid in left]
        time.sleep(0.05)
    assert run.wait(PATIENCE) == (-signal.SIGKILL if who == "launcher" else 2)
    run.stdout.close()


def alive(pid: int) -> bool:
    """Whether it runs: what nobody waits for any more is dead."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
