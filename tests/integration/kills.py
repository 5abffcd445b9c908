"""Runs that are killed, and what is compared: one import, then a forked process for each run."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers import rollouts, rows, trained

from llmrl import faults
from llmrl.tracking import folder as run_folder
from llmrl.training import session as session  # everything that a run imports is here before the first fork

PR_SET_CHILD_SUBREAPER = 36
STOOD_ON = run_folder.versions()  # reading what is installed takes longer than such a run
PATIENCE = 300.0  # seconds after which a run counts as hung
BRANCHES = {"training": {"steps": 4, "save_every": 2}, "rollout": {"prompts_per_step": 2, "group_size": 4}}
KINDS: dict[str, dict[str, Any]] = {
    # several updates a batch, several epochs, a critic
    "ppo": BRANCHES | {"algorithm": {"name": "ppo", "epochs": 2, "minibatches": 2}, "scorers": ["judges:varied"]},
    # memories of parts: a baseline, two controllers that watch the loss
    "memories": BRANCHES
    | {
        "algorithm": {
            "name": "reinforce",
            "minibatches": 2,
            "regularizers": [{"name": "adaptive_kl", "target": 1e-4, "kl_coef": 0.5}],
        },
        "scorers": ["judges:varied"],
    },
    # the condition part's memory, whose prompts depend on what was scored
    "fcp": BRANCHES
    | {
        "scorers": [{"name": "scripted_feedback", "tags": False}],
        "algorithm": {"name": "fcp", "condition": {"min_score": 0.0}},
    },
    # a thread that samples ahead of training, whose answers a checkpoint has to wait for
    "ahead": BRANCHES
    | {
        "algorithm": {"name": "tis"},
        "scorers": ["judges:varied"],
        "rollout": BRANCHES["rollout"] | {"engine": "own_weights:OwnWeights", "staleness": 1},
        "training": {"steps": 5, "save_every": 2},
    },
    "far ahead": BRANCHES
    | {
        "algorithm": {"name": "dapo", "shaping": ["importance_weights"]},
        "scorers": ["judges:varied"],
        "rollout": BRANCHES["rollout"] | {"engine": "own_weights:OwnWeights", "staleness": 3},
        "training": {"steps": 6, "save_every": 2},
    },
    # two stages with exports between them, a checkpoint after every step
    "stages": BRANCHES
    | {
        "training": {"save_every": 1},
        "stages": [
            {
                "name": "warm-up",
                "algorithm": {"name": "sft"},
                "data": {"source": {"name": "addition_demonstrations", "size": 64}},
                "rollout": {"engine": "replay"},
                "training": {"steps": 2},
            },
            {"name": "rl", "algorithm": {"name": "grpo"}, "scorers": ["judges:varied"], "training": {"steps": 2}},
        ],
    },
}


class Everything(str):
    """Equal to every point, so that each visit is counted and none is a fault."""

    def __init__(self, *_: Any):
        self.seen: Counter[str] = Counter()

    def __eq__(self, point: object) -> bool:
        self.seen[str(point)] += 1
        return False

    def __ne__(self, point: object) -> bool:
        self.__eq__(point)
        return True

    __hash__ = str.__hash__


@dataclass
class Oracle:
    """A run that nothing has disturbed. visits: of each point; seconds: it took."""

    kind: str
    digest: dict[str, Any]
    visits: dict[str, int]
    seconds: float


@dataclass
class Tally:
    """What became of the trials."""

    killed: int = 0
    resumed: int = 0
    equal: int = 0
    wrong: list[str] = field(default_factory=list)


def forked(work: Callable[[], Any], log: Path, kill_after: float | None = None, number: int = signal.SIGKILL) -> int:
    """The wait status of a child that does the work, less whatever it left running; AssertionError for a hung one.

    kill_after: seconds until it gets the signal `number`.
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        with log.open("a") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        status = 1
        try:
            run_folder.versions = lambda: STOOD_ON
            work()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        except KeyboardInterrupt:
            status = 130
        except BaseException:  # noqa: BLE001 - told in the log
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    began = time.monotonic()
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        passed = time.monotonic() - began
        if kill_after is not None and passed >= kill_after:
            os.kill(pid, number)
            kill_after = None
        if passed > PATIENCE:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError(f"a run was not done after {PATIENCE:g} s, see {log}")
        time.sleep(0.002)


def prepare(base: Path) -> None:
    """Load what runs load by and by, so that no child has to; have the orphans of children come to us, to be counted."""
    trained(base, "warm-up", **KINDS["ppo"])
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def orphans(before: set[int]) -> set[int]:
    """Processes that children have left behind and that do not end by themselves within PATIENCE."""
    left = children() - before
    deadline = time.monotonic() + PATIENCE
    while left and time.monotonic() < deadline:
        for pid in list(left):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    left.discard(pid)
        left &= children()
        time.sleep(0.005)
    return left


def children() -> set[int]:
    me = os.getpid()
    return set(map(int, Path(f"/proc/{me}/task/{me}/children").read_text().split()))


def run(base: Path, name: str, kind: str, plan: faults.Plan | None = None, **changes: Any) -> Callable[[], None]:
    """The work of a child: this run, with this fault."""

    def work() -> None:
        faults.PLAN = plan
        trained(base, name, **KINDS[kind] | changes)

    return work


def ended_by(base: Path, name: str, point: str, nth: int, action: str, **changes: Any) -> int:
    """The exit status of a run of kind ppo with a fault."""
    status = forked(run(base, name, "ppo", faults.Plan(point, nth, action), **changes), base / f"{name}.log")
    return os.waitstatus_to_exitcode(status)


def digest(folder: Path) -> dict[str, Any]:
    """What has to be equal: weights, optimizer, memories, the exported model, metrics, and what was consumed in order."""
    last = max(folder.glob("checkpoint-[0-9]*"), key=lambda path: int(path.name.partition("-")[2]))
    files = {name: sha256(last / name) for name in ("weights.safetensors", "optimizer.safetensors", "state.json")}
    steps = sorted(int(path.stem.partition("_")[2]) for path in folder.glob("rollouts/step_*.jsonl"))
    consumed = [(r["prompt_id"], r["ids"], r["reward"]) for step in steps for r in rollouts(folder, step)]
    return files | {
        "checkpoint": last.name,
        "final": sha256(next((folder / "final").glob("*model.safetensors"))),
        "metrics": rows(folder),
        "consumed": consumed,
    }


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def oracle(base: Path, kind: str, **changes: Any) -> Oracle:
    """The undisturbed run of a kind."""
    census, seen = Everything(), base / f"{kind}-visits.json"

    def work() -> None:
        run(base, f"{kind}-oracle", kind, faults.Plan(census, 1, "kill"), **changes)()
        seen.write_text(json.dumps(census.seen))

    began = time.monotonic()
    assert forked(work, base / f"{kind}-oracle.log") == 0, (base / f"{kind}-oracle.log").read_text()
    seconds = time.monotonic() - began
    return Oracle(kind, digest(base / "runs" / f"{kind}-oracle"), json.loads(seen.read_text()), seconds)


def differences(oracle: Oracle, folder: Path) -> list[str]:
    """Where a run differs from the undisturbed one."""
    found = digest(folder)
    return [key for key in found if found[key] != oracle.digest[key]]


def killed(base: Path, name: str, oracle: Oracle, rng: random.Random, tally: Tally, point: str | None = None) -> None:
    """One trial: kill a run at a point, or where None at any time, and let the same command finish it."""
    before = children()
    if point is None:
        moment = rng.random() * oracle.seconds
        status = forked(run(base, name, oracle.kind), base / f"{name}.log", kill_after=moment)
        what = f"{oracle.kind}, SIGKILL after {moment:.2f} s"
    else:
        nth = rng.randint(1, oracle.visits[point])
        status = forked(run(base, name, oracle.kind, faults.Plan(point, nth, "kill")), base / f"{name}.log")
        what = f"{oracle.kind}, {point}:{nth}:kill"
        if not os.WIFSIGNALED(status):
            tally.wrong.append(f"{what}: was not killed, status {status}: {tail(base / f'{name}.log')}")
            return
    tally.killed += 1
    if status and not (base / "runs" / name / "result.json").exists():  # else the run had ended already
        status = forked(run(base, name, oracle.kind), base / f"{name}.log")
        if status:
            tally.wrong.append(f"{what}: not resumed, status {status}: {tail(base / f'{name}.log')}")
            return
    tally.resumed += 1
    differ = differences(oracle, base / "runs" / name)
    if (base / "runs" / f"{name}-2").exists():
        differ.append("a second folder")
    left = leftovers(base / "runs" / name)
    if left:
        differ.append(f"left behind: {', '.join(left)}")
    if stray := orphans(before):
        differ.append(f"processes left: {stray}")
    if differ:
        tally.wrong.append(f"{what}: {', '.join(differ)} differ")
    else:
        tally.equal += 1


def leftovers(folder: Path) -> list[str]:
    """Drafts and buffers that a finished run still has."""
    return [p.name for p in folder.rglob("*") if ".tmp-" in p.name or p.parent.name == "buffer"]


def tail(log: Path) -> str:
    return " | ".join(log.read_text().splitlines()[-3:])
