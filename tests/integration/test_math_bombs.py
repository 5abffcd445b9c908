"""Hostile answers to mathematics in the real pool: none is right, none is stuck, memory stays below the cap."""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "fixtures"))

import math_bombs

from llmrl.config import Scoring
from llmrl.pool import Pool
from llmrl.scoring import make_scorers, score
from llmrl.types import Group, Prompt, Rollout

COUNT = int(os.environ.get("FAULTS", 40))
CAP = 0.5 * 1024**2  # KiB, math_answer's own


def asked(texts):
    return [
        Group(Prompt(str(i), text="", reference="x^2+1"), (Rollout((), f"\\boxed{{{text}}}"),))
        for i, text in enumerate(texts)
    ]


def peak(pid, what="VmHWM"):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what))


def test_bombs_are_wrong_and_leave_no_stuck_process():
    bombs = [*math_bombs.BOMBS, *math_bombs.SLOW, *math_bombs.made(COUNT)]
    scorers = make_scorers(["math_answer"])
    with Pool(2) as pool:
        score(asked(["x^2 + 1", "2"]), scorers, Scoring(), pool)
        at_start = max(peak(worker.pid, "VmRSS") for worker in pool.staff)
        scored = score(asked(bombs), scorers, Scoring(), pool)
        assert [g.scores[0]["math_answer"].value for g in scored] == [0.0] * len(bombs)
        assert all(peak(worker.pid) <= at_start + CAP for worker in pool.staff) and len(pool.staff) == 2
        began = time.monotonic()
        (after,) = score(asked(["x^2 + 1"]), scorers, Scoring(), pool)
        assert after.scores[0]["math_answer"].value == 1.0 and time.monotonic() - began < 2.5
        print(f"{len(bombs)} bombs, {pool.replaced} processes replaced")
