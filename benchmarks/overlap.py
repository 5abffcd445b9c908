"""What the trainer waits for scorers: judging group by group while others are still being written, or only afterwards.

    python benchmarks/overlap.py

Nothing is trained: a step here is sampling and scoring, by the transformers engine on one thread, with two processes for
scorers. Both ways take turns on the same prompts and seeds, and the scores have to be the same.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.report import machine, section, spread, table
from benchmarks.shapes import SHAPES, make_model, make_prompts
from benchmarks.trainers import llmrl_loop, scorers_time

COSTS = {"none": 0.0, "2 ms": 0.002, "20 ms": 0.020}
HEADERS = [
    "shape", "scorer, CPU a rollout", "scores begin", "generate, s", "waited for scores, s", "trainer, CPU-s",
    "scorers, CPU-s",
]  # fmt: skip
WAYS = ("at the end", "at once")
WARM_UP = 2


def judge(prompt: Any, rollout: Any, *, seconds: float = 0.0) -> Any:
    """The share of even token ids, after so much of the processor's time."""
    from llmrl.types import Score

    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return Score(sum(i % 2 == 0 for i in rollout.ids) / len(rollout.ids))


def measure(shape: str, steps: int) -> list[list[Any]]:
    """A row of the table for each cost and way: medians over the steps, with their range for what is waited."""
    import torch
    from transformers import AutoTokenizer

    from llmrl.clock import Clock
    from llmrl.collect import Collector
    from llmrl.pool import Pool
    from llmrl.scoring import make_scorer

    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as name, Pool(2) as pool:
        folder = Path(name)
        make_model(SHAPES[shape], folder / "model")
        count, tokenizer = WARM_UP + steps, AutoTokenizer.from_pretrained(folder / "model")
        make_prompts(SHAPES[shape], count, folder / "prompts.jsonl", tokenizer)
        loop = llmrl_loop(SHAPES[shape], folder, seed=0)
        stage, generate = loop.stage, loop.stage.engine.generate
        stage.pool, collector = pool, Collector(stage, loop.ranks, loop.seed_of)
        generates = dict(zip(WAYS, (lambda *asked: generate(*asked[:4]), generate), strict=True))
        for cost, seconds in COSTS.items():
            stage.scorers = [make_scorer({"name": "benchmarks.overlap:judge", "seconds": seconds})]
            found: dict[str, list[tuple[float, ...]]] = {way: [] for way in WAYS}
            for number in range(count):
                scores = {}
                for way in WAYS if number % 2 else WAYS[::-1]:
                    stage.engine.generate, stage.drawn, clock = generates[way], number, Clock()
                    before = time.process_time(), scorers_time(pool)
                    groups = collector.collect(number, clock)[0]
                    spent = time.process_time() - before[0], scorers_time(pool) - before[1]
                    scores[way] = [group.scores for group in groups]
                    found[way].append((clock.seconds["generate"], clock.seconds["score"], *spent))
                if scores[WAYS[0]] != scores[WAYS[1]]:
                    raise SystemExit(f"step {number}: the scores depend on when they are made; expected the same.")
            for way in WAYS:
                sampled, waited, *spent = zip(*found[way][WARM_UP:], strict=True)
                middle = [f"{median(numbers):.3f}" for numbers in spent]
                rows.append([shape, cost, way, f"{median(sampled):.3f}", spread(waited), *middle])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=8, help=f"measured steps, after {WARM_UP} to warm up")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md, section overlap")
    given = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    rows = [row for shape in ("demo", "A") for row in measure(shape, given.steps)]
    text = f"{table(HEADERS, rows)}\n\nMedians of {given.steps} steps, the range in brackets. {machine()}."
    print(text)
    if given.write:
        section("overlap", text)


if __name__ == "__main__":
    main()
