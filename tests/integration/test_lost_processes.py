"""A process of the run that dies or stops answering: the others end with a message, and the run goes on later."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from helpers import rows, trained
from test_stop_processes import PLAIN, running, started, waited, write_recipe

pytestmark = pytest.mark.processes
PATIENCE = 200.0
LOST = PLAIN | {"rank_timeout": 15.0, "grace": 2.0, "training": {"steps": 400, "save_every": 1}}


def process_of(rank: int, recipe: Path) -> int:
    """The process of that rank of the recipe's run."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            told = (place / "environ").read_bytes().split(b"\0")
            words = (place / "cmdline").read_bytes().decode()
        except OSError:
            continue
        if f"RANK={rank}".encode() in told and str(recipe) in words:
            return int(place.name)
    raise AssertionError("no such process")


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGKILL, "ended by SIGKILL"), (signal.SIGSTOP, "rank_timeout")], ids=["dead", "stuck"]
)
def test_a_lost_process_ends_the_run_which_goes_on_later(tmp_path, number, said):
    recipe = write_recipe(tmp_path, "lost", **LOST)
    folder = tmp_path / "runs" / "lost"
    run = started(recipe)
    waited(run, folder / "metrics.jsonl")
    os.kill(process_of(1, recipe), number)
    told = run.communicate(timeout=PATIENCE)[0]
    assert run.returncode == 2, told
    assert said in told
    assert "ChildFailedError" not in told
    assert "Traceback" not in told
    assert running(recipe) == []
    done = max(row["step"] for row in rows(folder, "loss/total"))
    again = trained(tmp_path, "lost", **LOST | {"training": {"steps": done + 1, "save_every": 0}})
    assert [row["step"] for row in rows(again.folder, "loss/total")] == list(range(1, done + 2))
