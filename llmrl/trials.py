"""The runs of a comparison: every recipe with every seed, in child processes of one thread, side by side on the cores."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmrl import comparison
from llmrl.completions import alone
from llmrl.errors import LlmrlError
from llmrl.recipe import RECIPES, resolve
from llmrl.tracking.folder import RunFolder
from llmrl.tracking.jsonl import write_text
from llmrl.tracking.text import duration

FINISHED = "result.json"
POLL = 0.5  # seconds between looks at the children


@dataclass(frozen=True)
class Trial:
    """One run to be made: `llmrl train` with these words, in `folder`."""

    recipe: str
    seed: int
    folder: Path
    words: tuple[str, ...]

    @property
    def finished(self) -> bool:
        return (self.folder / FINISHED).exists()

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")


def compare(recipes: Sequence[str], overrides: Sequence[str], *, seeds: int, metric: str | None, out: Path) -> str:
    """Run what is not finished yet, then write comparison.json, .svg and .html into `out`; returns the table.

    Raises LlmrlError for recipes that do not resolve, for folders that hold other runs and where a run fails.
    """
    trials = planned(recipes, overrides, seeds, out)
    with alone(out):
        run_all(trials)
    runs: dict[str, dict[int, list]] = {}
    for trial in trials:
        runs.setdefault(trial.recipe, {})[trial.seed] = RunFolder(trial.folder).metrics()
    found = comparison.compare(runs, metric)
    write_text(out / "comparison.json", comparison.as_json(found))
    write_text(out / "comparison.svg", comparison.standalone(comparison.differences(found)))
    commands = [" ".join(["llmrl train", *trial.words]) for trial in trials]
    write_text(out / "comparison.html", comparison.report(found, runs, commands))
    return f"{comparison.table(found)}\n{out / 'comparison.html'}"


def planned(recipes: Sequence[str], overrides: Sequence[str], seeds: int, out: Path) -> list[Trial]:
    """Every recipe with the seeds 0 to seeds - 1, seed by seed, so that an interrupted comparison is paired as far as it
    got. Raises LlmrlError for two recipes of one name, fewer than two recipes, or a finished run of another recipe.
    """
    if len(recipes) < 2 or seeds < 1:
        raise LlmrlError(f"found {len(recipes)} recipes and {seeds} seeds, expected at least two recipes and one seed.")
    labels = {name: label(resolve(name, overrides).path) for name in recipes}
    if len(set(labels.values())) < len(recipes):
        raise LlmrlError(f"recipes of one name: {', '.join(recipes)}. Each needs a file name of its own.")
    trials = []
    for seed in range(seeds):
        for name in recipes:
            folder = out / f"{labels[name]}-seed{seed}"
            own = [*overrides, f"seed={seed}", f"out={out}", f"name={folder.name}", "tracking.panel=plain"]
            trial = Trial(labels[name], seed, folder, (name, *own))
            # both as they resolve today: a key that is new since then has its default in both
            if trial.finished and resolve(folder / "recipe.yaml").text != resolve(name, own).text:
                raise LlmrlError(
                    f"{folder} holds a run of another recipe than {name} is now. Give another --out, or move it away."
                )
            trials.append(trial)
    return trials


def label(path: Path) -> str:
    """What a recipe is called: its place below recipes/, else its file name, as one word."""
    inside = path.resolve().is_relative_to(RECIPES.resolve())
    place = path.resolve().relative_to(RECIPES.resolve()) if inside else Path(path.name)
    return "-".join(place.with_suffix("").parts).removeprefix("algorithms-")


def run_all(trials: Sequence[Trial]) -> None:
    """Run the unfinished ones, as many at once as there are cores. LlmrlError names those that failed, with their logs."""
    waiting = [trial for trial in trials if not trial.finished]
    running: dict[Trial, tuple[subprocess.Popen, float]] = {}
    failed: list[Trial] = []
    done = len(trials) - len(waiting)
    if done:
        print(f"{done} of {len(trials)} runs are finished already", flush=True)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the children end with this process
    try:
        while waiting or running:
            while waiting and len(running) < len(os.sched_getaffinity(0)):
                trial = waiting.pop(0)
                running[trial] = start(trial), time.monotonic()
            time.sleep(POLL)
            for trial, (child, began) in list(running.items()):
                if child.poll() is None:
                    continue
                del running[trial]
                done += 1
                took = duration(time.monotonic() - began)
                state = "finished" if trial.finished else f"failed, see {trial.log}"
                print(f"[{done}/{len(trials)}] {trial.folder.name} {state} after {took}", flush=True)
                if not trial.finished:
                    failed.append(trial)
    finally:
        signal.signal(signal.SIGTERM, before)
        for child, _ in running.values():
            child.terminate()
        for child, _ in running.values():
            child.wait()
    if failed:
        raise LlmrlError("; ".join(f"{t.folder.name} failed: {last_line(t.log)} ({t.log})" for t in failed))


def start(trial: Trial) -> subprocess.Popen:
    """The child. A folder without a checkpoint is begun anew: a run numbers its folder rather than overwrite one."""
    from llmrl.training import checkpoint

    if trial.folder.exists() and checkpoint.newest(trial.folder)[0] is None:
        with alone(trial.folder):
            shutil.rmtree(trial.folder)
    with trial.log.open("a") as log:
        command = [sys.executable, "-m", "llmrl.cli", "train", *trial.words]
        return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})


def last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it wrote nothing"
