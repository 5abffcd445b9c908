"""CPU-seconds of one update and of generation as groups grow, and as prompts do, with the prompt of a group shared or not.

    python benchmarks/scaling.py           # about three CPU-minutes; --write puts the result into docs/benchmarks.md

Two prompts of made token ids a step, answers of 64 tokens, all of the same length. 'Not shared' is
`model.shared_prompt=off` for the update; generation is then asked for one answer to each of as many copies of the prompt.
Both sides in turns, on one thread, by `time.process_time`; medians over rounds, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.made import made, make_model, our_batch, our_update, our_updater
from benchmarks.report import COLOURS, figure, machine, section, spread, table

VOCABULARY, HIDDEN, LAYERS, PROMPTS, ANSWER = 8192, 256, 4, 2, 64
GROUPS, PROMPT = (2, 4, 8, 16, 32), 256  # the first sweep: group sizes at one length of prompt
LENGTHS, GROUP = (16, 32, 64, 128, 256, 512), 8  # the second: lengths of prompt at one group size
POINTS = sorted({(g, PROMPT) for g in GROUPS} | {(GROUP, p) for p in LENGTHS})
WORK = ("update", "generate")

Point = tuple[int, int]  # group size, tokens of a prompt
Seconds = dict[str, dict[Point, list[float]]]  # by side, one number a round


def sides() -> Iterator[tuple[str, bool]]:
    for work in WORK:
        for shared in (True, False):
            yield f"{work}{'' if shared else ', not shared'}", shared


def measure(folder: Path) -> dict[str, list[float]]:
    """CPU-seconds by side, one number a point: what one round gives."""
    import torch

    torch.set_num_threads(1)
    updaters = {
        shared: our_updater(folder / "model", shared_prompt="auto" if shared else "off") for shared in (True, False)
    }
    jobs = {}
    for name, shared in sides():
        work = updating if name.startswith("update") else generating
        jobs[name] = work(updaters[shared], shared)
        jobs[name](min(POINTS))  # to warm up
    out: dict[str, list[float]] = {name: [] for name in jobs}
    for point in POINTS:
        for name, job in jobs.items():
            out[name].append(job(point))
    return out


def updating(updater: Any, shared: bool) -> Callable[[Point], float]:
    def job(point: Point) -> float:
        batch = our_batch(made(VOCABULARY, PROMPTS, point[0], point[1], ANSWER))
        start = time.process_time()
        our_update(updater, batch)
        return time.process_time() - start

    return job


def generating(updater: Any, shared: bool) -> Callable[[Point], float]:
    from llmrl.rollout.engine import Context
    from llmrl.rollout.transformers import TransformersEngine
    from llmrl.types import Prompt, Sampling

    policy = updater.policy
    engine = TransformersEngine(Context(policy, policy.tokenizer, (), max(LENGTHS), ANSWER))  # no token ends an answer

    def job(point: Point) -> float:
        group, length = point
        copies, samples = (1, group) if shared else (group, 1)
        given = made(VOCABULARY, PROMPTS, group, length, ANSWER).prompts
        prompts = [Prompt(f"{i}/{n}", ids=tuple(ids)) for i, ids in enumerate(given) for n in range(copies)]
        start = time.process_time()
        engine.generate(prompts, Sampling(ANSWER), samples, list(range(len(prompts))))
        return time.process_time() - start

    return job


def in_process(folder: Path) -> dict[str, list[float]]:
    """What a process of this file prints, read as JSON. SystemExit when it fails."""
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, "--folder", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the process ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def ideal(unshared: dict[Point, float]) -> dict[Point, float]:
    """Each prompt once and each answer once, at what the side that shares nothing pays for a step, a token of a prompt and
    a token of an answer: by least squares of the relative errors over all its points.
    """
    import numpy

    paid = numpy.array([[1.0, g * p, g * ANSWER] for g, p in POINTS])
    seconds = numpy.array([unshared[point] for point in POINTS])
    costs, *_ = numpy.linalg.lstsq(paid / seconds[:, None], numpy.ones(len(POINTS)), rcond=None)
    return {(g, p): float(costs @ [1.0, p, g * ANSWER]) for g, p in POINTS}


def draw(middle: dict[str, dict[Point, float]], lines: dict[str, dict[Point, float]]) -> None:
    sweeps = (
        ([(g, PROMPT) for g in GROUPS], 0, f"answers to a prompt of {PROMPT} tokens"),
        ([(GROUP, p) for p in LENGTHS], 1, f"tokens of a prompt with {GROUP} answers"),
    )
    with figure("scaling", panels=2, width=5.4) as panels:
        for axes, (points, which, label) in zip(panels, sweeps, strict=True):
            across = [point[which] for point in points]
            for work, colour in zip(WORK, COLOURS, strict=False):
                axes.plot(across, [middle[work][p] for p in points], marker="o", color=colour, label=work)
                other = [middle[f"{work}, not shared"][p] for p in points]
                axes.plot(across, other, "--", marker="o", mfc="white", color=colour, label=f"{work}, not shared")
                axes.plot(across, [lines[work][p] for p in points], ":", lw=1.5, color=colour, label=f"{work}, ideal")
            axes.set_xscale("log", base=2)
            axes.set_yscale("log", base=2)
            axes.set_xticks(across, [str(n) for n in across])
            axes.yaxis.set_major_formatter("{x:g}")
            every = [number for points in (*middle.values(), *lines.values()) for number in points.values()]
            axes.set(xlabel=label, ylabel="CPU-seconds a step", ylim=(0.8 * min(every), 1.25 * max(every)))
        panels[0].legend(fontsize=9)


def compare(rounds: int, write: bool) -> None:
    """Print the table; with `write` also into the page, with the picture."""
    found: Seconds = {name: {point: [] for point in POINTS} for name, _ in sides()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model", VOCABULARY, HIDDEN, LAYERS, positions=1024)
        for _ in range(rounds):
            for side, numbers in in_process(folder).items():
                for point, number in zip(POINTS, numbers, strict=True):
                    found[side][point].append(number)
    middle = {side: {p: median(n) for p, n in of_point.items()} for side, of_point in found.items()}
    lines = {work: ideal(middle[f"{work}, not shared"]) for work in WORK}
    rows = []
    for point in sorted(POINTS, key=lambda p: (p[1] != PROMPT, p[1], p[0])):
        cells = []
        for work in WORK:
            other = f"{work}, not shared"
            gain = middle[other][point] / middle[work][point]
            cells += [
                spread(found[work][point], 2),
                spread(found[other][point], 2),
                f"{gain:.1f}",
                f"{lines[work][point]:.2f}",
            ]
        rows.append([point[0], point[1], *cells])
    headers = ["answers", "prompt"]
    for work in WORK:
        headers += [work, "not shared", "ratio", "ideal"]
    text = table(headers, rows)
    print(f"{machine()}\n\n{text}")
    if write:
        draw(middle, lines)
        section("scaling", f"![CPU-seconds over group size and length of the prompt](images/bench-scaling.svg)\n\n{text}\n\n"
                f"Medians (ranges) of {rounds} rounds. {machine()}.")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write the section and the picture, too")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.folder is None:
        compare(given.rounds, given.write)
    else:
        print(json.dumps(measure(given.folder)))


if __name__ == "__main__":
    main()
