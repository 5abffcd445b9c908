"""CPU-seconds from the command to its first result: `llmrl --help`, `llmrl check`, and the demo's first optimizer step.

    python benchmarks/startup.py

User and system time of the whole tree of processes. Python's bytecode goes to a folder of its own, so that the first
start of each command is that after an installation, and the later ones are what a user sees from then on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.report import machine, section, spread, table

STARTS = 5
HEADERS = ["start of", "CPU-seconds", "first start", "target"]
HANG = 600.0  # seconds without a first step after which the demo is given up
ABOUT = """User and system time of the whole tree of processes: the median, and the range behind it. The first start, before
Python has its bytecode, stands apart. The demo counts until the line of its first step in metrics.jsonl, with 32,000
demonstrations read."""
RECIPE = """model: {path: model}
data: {source: questions.jsonl}
algorithm: {name: grpo}
scorers: [math_answer]
rollout: {max_tokens: 64}
"""


def environment(bytecode: Path) -> dict[str, str]:
    """One thread, and bytecode that is kept where this measurement alone sees it."""
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return inherited | {"OMP_NUM_THREADS": "1", "PYTHONPYCACHEPREFIX": str(bytecode)}


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "llmrl.cli", *words]


def whole(words: list[str], folder: Path, env: dict[str, str]) -> float:
    """CPU-seconds of a command and of every process that it started and waited for. RuntimeError when it fails."""
    process = subprocess.Popen(words, cwd=folder, env=env, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)}: exit status {process.returncode}, expected 0.")
    return used.ru_utime + used.ru_stime


def until_first_step(words: list[str], folder: Path, env: dict[str, str]) -> float:
    """CPU-seconds of a training command and its processes until it has written a step's metrics; then it is ended."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        process = subprocess.Popen([*words, f"out={out}"], cwd=folder, env=env, stdout=subprocess.DEVNULL)
        tree = psutil.Process(process.pid)
        try:
            give_up = time.monotonic() + HANG
            while not has_step(Path(out)):
                if process.poll() is not None or time.monotonic() > give_up:
                    raise RuntimeError(f"{' '.join(words)}: no step, exit status {process.poll()}.")
                time.sleep(0.02)
            return sum(spent(part) for part in [tree, *tree.children(recursive=True)])
        finally:
            process.kill()
            process.wait()


def has_step(out: Path) -> bool:
    rows = [line for path in out.glob("*/metrics.jsonl") for line in path.read_text().splitlines(keepends=True)]
    return any("time/step" in json.loads(row) for row in rows if row.endswith("\n"))


def spent(process: psutil.Process) -> float:
    """CPU-seconds of a process and of those that it has waited for."""
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:  # it ended meanwhile, and its parent has its time
        return 0.0
    return times.user + times.system + times.children_user + times.children_system


def prepare(folder: Path) -> None:
    """A recipe with a model folder and 1,000 questions beside it."""
    code = "from llmrl.policy.tiny import tiny; tiny('model')"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True)
    rows = [{"prompt": f"What is {i} + {i % 7}?", "reference": str(i + i % 7)} for i in range(1000)]
    (folder / "questions.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "local.yaml").write_text(RECIPE)


def measured(starts: int) -> str:
    """The table: what was started, the median and range, the first start, the target."""
    libraries = [sys.executable, "-c", "import torch; from transformers import AutoModelForCausalLM"]
    tasks: list[tuple[str, Callable[..., float], list[str], str]] = [
        ("`llmrl --help`", whole, command("--help"), "0.4"),
        ("`llmrl check`, local recipe, model and data", whole, command("check", "local.yaml"), "8"),
        ("importing torch and the model classes of transformers, a part of the other two", whole, libraries, ""),
        ("`llmrl demo`, to the first optimizer step", until_first_step, command("demo", "tracking.panel=off"), "25"),
    ]
    rows = []
    for name, measure, words, target in tasks:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            prepare(folder)
            first, *later = [measure(words, folder, environment(folder / "bytecode")) for _ in range(starts + 1)]
            rows.append([name, spread(later, 2), f"{first:.2f}", target])
            print(table(HEADERS, rows[-1:]).splitlines()[-1], flush=True)
    return table(HEADERS, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=STARTS, help="of each command, besides the first; %(default)s")
    parser.add_argument("--write", action="store_true", help="write section startup of docs/benchmarks.md")
    asked = parser.parse_args()
    found = f"{measured(asked.starts)}\n\n`python benchmarks/startup.py --starts {asked.starts}`, {machine()}."
    print(f"\n{found}")
    if asked.write:
        section("startup", f"## Start-up\n\n{ABOUT}\n\n{found}")
