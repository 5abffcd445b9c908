"""One run under fault after fault for some minutes: `python tests/integration/soak.py [seconds]`; CI does not.

A run is started, and every few seconds killed, asked to end, or robbed of a file of its newest checkpoint, then started again
with the same command; when it is done, the next one begins. Every one must end with what the undisturbed run ends with.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import kills

from llmrl.training import checkpoint

STEPS = 40
CHANGES = {"training": {"steps": STEPS, "save_every": 3}}
PAUSES = (0.5, 6.0)  # seconds between two faults
SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "interrupt": signal.SIGINT}
EXPECTED = {"kill": -signal.SIGKILL, "terminate": 143, "interrupt": 130}


def main(seconds: float) -> int:
    base = Path(tempfile.mkdtemp(prefix="soak-"))
    kills.prepare(base)
    assert kills.forked(kills.run(base, "oracle", "ppo", **CHANGES), base / "oracle.log") == 0
    wanted = kills.digest(base / "runs" / "oracle")
    rng, made, wrong = random.Random(0), Counter(), []
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        name, before = f"run-{number}", kills.children()
        number += 1
        made["runs"] += 1
        while True:
            action = rng.choice(list(SIGNALS))
            work = kills.run(base, name, "ppo", **CHANGES)
            status = os.waitstatus_to_exitcode(
                kills.forked(work, base / f"{name}.log", rng.uniform(*PAUSES), SIGNALS[action])
            )
            if status == 0:
                break
            made[action] += 1
            # a signal of the first moments meets Python's own handlers, before a run has any
            if status not in (EXPECTED[action], -SIGNALS[action]):
                wrong.append(f"{name}: exit status {status} after {action}: {kills.tail(base / f'{name}.log')}")
                break
            if (base / "runs" / name / "result.json").exists():
                break  # it was done before the signal came
            newest = checkpoint.newest(base / "runs" / name)[0]
            older = [c for c in checkpoint.all_checkpoints(base / "runs" / name) if c != newest]
            if newest is not None and older and rng.random() < 0.2:
                (newest / rng.choice(["weights.safetensors", "state.json"])).write_bytes(b"")
                made["damaged"] += 1
        if (base / "runs" / name / "result.json").exists() and kills.digest(base / "runs" / name) != wanted:
            wrong.append(f"{name} ends otherwise than the undisturbed run")
        if stray := kills.orphans(before):
            wrong.append(f"{name} left processes: {stray}")
        print(f"{number}: {dict(made)}, {len(wrong)} wrong", flush=True)
    print(*wrong, sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 600.0))
