"""Named places at which a test makes a run fail: `LLMRL_FAULT=point:nth:action`. Unset, a place costs one comparison.

points: POINTS; nth: at which visit, from 1. actions: ACTIONS. A test in the same process sets PLAN itself.
"""

from __future__ import annotations

import errno
import os
import signal
from dataclasses import dataclass

POINTS = (
    "generated",  # a step's answers are there
    "scored",
    "passed",  # the passes ahead of the update
    "differentiated",  # a mini-batch's gradient is there, its step is not made
    "stepped",  # after an optimizer step
    "metrics",  # before a row of metrics is written
    "reported",  # after it
    "file",  # after each file of a checkpoint
    "manifest",
    "committing",  # the checkpoint is whole and not yet in its place
    "committed",
    "retaining",  # before an older checkpoint goes
    "exported",  # a model is written and not yet in its place
)
SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "interrupt": signal.SIGINT}
ACTIONS = (*SIGNALS, "full", "memory")


@dataclass
class Plan:
    """What fails where. visits: how often the point has been reached."""

    point: str
    nth: int
    action: str
    visits: int = 0


def parse(text: str) -> Plan | None:
    """'stepped:3:kill' → Plan; None for ''. ValueError for anything else."""
    if not text:
        return None
    point, nth, action = (*text.split(":"), "", "")[:3]
    if point not in POINTS or not nth.isdigit() or action not in ACTIONS:
        raise ValueError(f"LLMRL_FAULT={text}: expected point:nth:action, {'|'.join(POINTS)}, {'|'.join(ACTIONS)}.")
    return Plan(point, int(nth), action)


PLAN = parse(os.environ.get("LLMRL_FAULT", ""))


def reach(point: str) -> None:
    """Fail here if the plan says so."""
    if PLAN is None or PLAN.point != point:
        return
    PLAN.visits += 1
    if PLAN.visits != PLAN.nth:
        return
    if PLAN.action == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if PLAN.action == "memory":
        raise RuntimeError("DefaultCPUAllocator: not enough memory: a fault that was asked for")
    os.kill(os.getpid(), SIGNALS[PLAN.action])
