"""Seconds of a step when sampling waits for training, and when it runs ahead of it (rollout.staleness).

    python benchmarks/ahead.py

vllm: in the trainer's process, so that both share its processors. elsewhere: an engine that only waits, as for a server on
another machine, as long as a step trains. Runs take turns; the first steps are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.report import machine, section, spread, table
from llmrl.rollout.scripted import ScriptedEngine

HEADERS = ["engine", "staleness", "step, s", "waited for answers, s", "update, s"]
AHEAD = (0, 1, 2)
WARM_UP = 3
RECIPE = {
    "model": {"make": {"name": "tiny", "hidden": 256, "layers": 4, "heads": 8, "kv_heads": 4, "feed_forward": 1024}},
    "data": {"source": {"name": "addition", "size": 256}},
    "algorithm": {"name": "tis"},
    "scorers": ["benchmarks.overlap:judge"],
    "rollout": {"prompts_per_step": 8, "group_size": 8, "max_tokens": 48},
    "training": {"learning_rate": 1e-5, "save_every": 0},
    "tracking": {"panel": "off", "rollouts_every": 0},
}


class Elsewhere(ScriptedEngine):
    """Answers after `seconds`, at no cost to this machine."""

    def __init__(self, context: Any, *, seconds: float = 1.0):
        super().__init__(context, answers=["1 2 3 4 5 6 7 8 9 " * 4, "4", "5 5"])
        self.seconds = seconds

    def generate(self, *asked: Any) -> Any:
        time.sleep(self.seconds)
        return super().generate(*asked)


def run(folder: Path, name: str, steps: int, staleness: int, engine: Any) -> list[dict[str, float]]:
    """The rows of such a run, those of the first steps left out."""
    import yaml

    from llmrl import train

    rollout = RECIPE["rollout"] | {"staleness": staleness, "engine": engine}
    # the scripted log-probabilities are not those of any weights
    training = RECIPE["training"] | {"steps": WARM_UP + steps, "max_logprob_gap": 1e9}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(RECIPE | {"rollout": rollout, "training": training, "out": str(folder / "runs")}))
    lines = (train(path).folder / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "time/step" in row][WARM_UP:]


def measured(engine: str, steps: int, rounds: int, folder: Path) -> list[list[Any]]:
    """A row of the table for each staleness."""
    named: Any = {"name": "vllm", "kv_cache_megabytes": 64}
    if engine == "elsewhere":
        trained = run(folder, "as-long-as-an-update", steps, 0, {"name": "benchmarks.ahead:Elsewhere", "seconds": 0.0})
        named = {"name": "benchmarks.ahead:Elsewhere", "seconds": round(median(row["time/step"] for row in trained), 3)}
    found: dict[int, list[dict[str, float]]] = {ahead: [] for ahead in AHEAD}
    for turn in range(rounds):
        for ahead in AHEAD if turn % 2 else AHEAD[::-1]:
            found[ahead] += run(folder, f"{engine}-{ahead}-{turn}", steps, ahead, named)
    parts = ("time/step", "time/generate", "time/update")
    return [[engine, ahead, *(spread([row[part] for row in rows]) for part in parts)] for ahead, rows in found.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12, help=f"measured steps of a run, after {WARM_UP} to warm up")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each kind")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md, section ahead")
    given = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        rows = [
            row for engine in ("vllm", "elsewhere") for row in measured(engine, given.steps, given.rounds, Path(name))
        ]
    told = f"Medians of {given.rounds} × {given.steps} steps, the range in brackets. {machine()}."
    text = f"{table(HEADERS, rows)}\n\n{told}"
    print(text)
    if given.write:
        section("ahead", text)


if __name__ == "__main__":
    main()
