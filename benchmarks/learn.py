"""Do the methods learn? Three seeds of each recipe, measured on held-out problems before and after; writes docs/learning.md.

    python benchmarks/learn.py [--methods GRPO PPO DPO FCP] [--seeds 0 1 2] [--out runs/learn] [--jobs 1]

Runs are `llmrl train` in processes of their own, one thread each, in <out>/<run>-s<seed>. A run that has finished there is
read, not repeated, so a stopped benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from llmrl.ops.intervals import Interval, mean_interval, over_seeds
from llmrl.tracking.folder import Row, RunFolder

PAGE = Path(__file__).resolve().parents[1] / "docs" / "learning.md"
CPU_SECONDS = "cpu_seconds.txt"
NO_RELABEL = "stages.bootstrap.algorithm.condition.relabel=false"


@dataclass(frozen=True)
class Experiment:
    """A run that is made once a seed: a recipe and overrides."""

    name: str
    recipe: str
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claim:
    """One row of the table.

    measure: the run's folder -> its value before and after. answers: (evaluation, stage) whose records give the interval
    over problems. held: whether one seed's (before, after) is as `expected` says; None leaves that to the reader.
    """

    method: str
    what: str
    experiment: Experiment
    measure: Callable[[RunFolder], tuple[float, float]]
    expected: str
    held: Callable[[float, float], bool] | None
    answers: tuple[str, str] | None = None


def ends(stage: str, *weighted: tuple[float, str]) -> Callable[[RunFolder], tuple[float, float]]:
    """A weighted sum of metrics, at the first and at the last measurement of a stage."""

    def measure(folder: RunFolder) -> tuple[float, float]:
        rows = measured(folder, stage, weighted[0][1])
        return tuple(sum(weight * row[name] for weight, name in weighted) for row in (rows[0], rows[-1]))

    return measure


def mean_of_ends(stage: str, name: str, steps: int = 5) -> Callable[[RunFolder], tuple[float, float]]:
    """Means of a training metric over the first and the last steps of a stage."""

    def measure(folder: RunFolder) -> tuple[float, float]:
        values = [row[name] for row in measured(folder, stage, name)]
        return fmean(values[:steps]), fmean(values[-steps:])

    return measure


def measured(folder: RunFolder, stage: str, name: str) -> list[Row]:
    """The metrics rows of a stage that hold a metric."""
    return [row for row in folder.metrics() if row["stage"] == stage and row.get(name) is not None]


QUICKSTART, PPO, DPO, FCP = (Experiment(r, r) for r in ("quickstart", "ppo_addition", "dpo_addition", "fcp_addition"))
ABLATION = Experiment("fcp_no_relabel", "fcp_addition", (NO_RELABEL,))
SAMPLED, POSITIVE, NEGATIVE = (f"eval/{name}/accuracy" for name in ("sampled", "positive", "negative"))


def rises(before: float, after: float) -> bool:
    return after > before


def falls(before: float, after: float) -> bool:
    return after < before


def accuracy_rises(method: str, experiment: Experiment, stage: str) -> Claim:
    """Sampled answers to held-out problems get better over the stage."""
    measure = ends(stage, (1.0, SAMPLED))
    return Claim(method, "accuracy of sampled answers", experiment, measure, "rises", rises, ("sampled", stage))


def told_correct(method: str, experiment: Experiment, expected: str, held: Callable | None) -> Claim:
    """Held-out accuracy under the positive condition, over the bootstrap stage."""
    measure, answers = ends("bootstrap", (1.0, POSITIVE)), ("positive", "bootstrap")
    return Claim(method, "accuracy when told correct", experiment, measure, expected, held, answers)


CRITIC = mean_of_ends("ppo", "critic/error")
PAIRS, MARGIN = ends("dpo", (1.0, "eval/pairs/accuracy")), ends("dpo", (1.0, "eval/pairs/margin"))
GAP = ends("offline", (1.0, POSITIVE), (-1.0, NEGATIVE))
CLAIMS = [
    accuracy_rises("GRPO", QUICKSTART, "grpo"),
    accuracy_rises("PPO", PPO, "ppo"),
    Claim("PPO", "squared error of the critic, in training", PPO, CRITIC, "falls", falls),
    accuracy_rises("DPO", DPO, "dpo"),
    Claim("DPO", "pairs whose right answer gained more", DPO, PAIRS, "above 0.5", lambda before, after: after > 0.5),
    Claim("DPO", "margin of those pairs", DPO, MARGIN, "rises", rises),
    Claim(
        *("FCP offline", "accuracy told correct less accuracy told wrong", FCP, GAP, "below 0.1, then 0.3 or more"),
        lambda before, after: before < 0.1 and after >= 0.3,
    ),
    told_correct("FCP bootstrap", FCP, "rises", rises),
    told_correct("FCP without relabelling", ABLATION, "less than with it", None),
]


def train(experiment: Experiment, seed: int, out: Path) -> RunFolder:
    """The finished run of a seed, made if it is not there. Raises CalledProcessError with its log's name."""
    folder = out / f"{experiment.name}-s{seed}"
    if not (folder / "result.json").exists():
        print(f"{folder} ...", flush=True)
        out.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, "-m", "llmrl.cli", "train", experiment.recipe, f"seed={seed}", f"out={out}"]
        words += [f"name={folder.name}", "tracking.panel=plain", *experiment.overrides]
        with open(out / f"{folder.name}.log", "w") as log:
            process = subprocess.Popen(words, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
            _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{folder.name} failed; see {out / f'{folder.name}.log'}")
        (folder / CPU_SECONDS).write_text(f"{usage.ru_utime + usage.ru_stime:.0f}\n")
    return RunFolder(folder)


def over_problems(folders: Sequence[RunFolder], evaluation: str, stage: str) -> Interval:
    """Gain of a problem, after less before, averaged over its samples and seeds; interval over the problems."""
    gains: dict[str, list[float]] = {}
    for folder in folders:
        steps = [row["global_step"] for row in measured(folder, stage, f"eval/{evaluation}/accuracy")]
        before, after = (by_problem(folder.evaluation(evaluation, step)) for step in (steps[0], steps[-1]))
        for problem in before.keys() & after.keys():
            gains.setdefault(problem, []).append(fmean(after[problem]) - fmean(before[problem]))
    return mean_interval([fmean(some) for some in gains.values()])


def by_problem(records: Sequence[Row]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for record in records:
        found.setdefault(record["prompt_id"], []).append(float(record["correct"]))
    return found


def line(claim: Claim, folders: Sequence[RunFolder]) -> str:
    """The table's row of a claim."""
    pairs = [claim.measure(folder) for folder in folders]
    gain = over_seeds([after - before for before, after in pairs])
    problems = over_problems(folders, *claim.answers) if claim.answers else None
    held = f": {sum(claim.held(*pair) for pair in pairs)} of {len(pairs)}" if claim.held else ""
    cells = [
        claim.method,
        claim.what,
        f"{fmean(p[0] for p in pairs):.3f}",
        f"{fmean(p[1] for p in pairs):.3f}",
        ", ".join(f"{before:.3f} → {after:.3f}" for before, after in pairs),
        f"{gain.mean:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})",
        f"{problems.low:+.3f} to {problems.high:+.3f}" if problems else "",
        f"{claim.expected}{held}",
    ]
    return f"| {' | '.join(cells)} |"


def rounds(folders: Sequence[RunFolder]) -> list[str]:
    """Accuracy under both conditions while bootstrapping, mean over seeds, as a table."""
    by_step: dict[int, list[Row]] = {}
    for folder in folders:
        for row in measured(folder, "bootstrap", POSITIVE):
            by_step.setdefault(row["step"], []).append(row)
    head = ["| step | " + " | ".join(map(str, by_step)) + " |", "|---" * (len(by_step) + 1) + "|"]
    return head + [
        f"| told {word} | " + " | ".join(f"{fmean(row[name] for row in rows):.3f}" for rows in by_step.values()) + " |"
        for word, name in (("correct", POSITIVE), ("wrong", NEGATIVE))
    ]


def costs(experiments: Sequence[Experiment], runs: dict[Experiment, list[RunFolder]]) -> list[str]:
    lines = ["| run | CPU-seconds, per seed | command |", "|---|---|---|"]
    for experiment in experiments:
        spent = [(folder.path / CPU_SECONDS).read_text().strip() for folder in runs[experiment]]
        command = " ".join(["llmrl train", experiment.recipe, *experiment.overrides, "seed=N"])
        lines.append(f"| {experiment.name} | {', '.join(spent)} | `{command}` |")
    return lines


INTRODUCTION = """# What the methods learn

Written by `python benchmarks/learn.py` (`make learn`) from finished runs; nothing here is typed in by hand.

Each recipe is run with the seeds {seeds}: its own model weights, data order and sampling. Every accuracy is measured on
problems that are never trained on. *Before* is the policy as the method's stage begins, after its supervised warm-up;
*after* is the last measurement of the stage. The *gain* is after less before, its interval mean ± t·s/√n over the seeds (95 %,
Student's t with {freedom} degrees of freedom). The interval *over problems* treats the problems as drawn at random instead: gain
of each problem averaged over its samples and seeds, mean ± 1.96 standard errors. It says nothing about other seeds.
"""
FEEDBACK = """
## Feedback-conditioned training, round by round

The loss is the likelihood of the policy's own answers under the feedback that they earned; no reward enters it. Accuracy on
held-out sums when the prompt says that the answer is correct, or wrong, as bootstrapping goes on; mean over seeds:
"""
COSTS = """
## Costs

User and system time of each whole run, every stage and evaluation of it, one thread, on the machine that wrote this page.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    methods = list(dict.fromkeys(claim.method.split()[0] for claim in CLAIMS))
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/learn"))
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--page", type=Path, default=PAGE, help="the file to write")
    asked = parser.parse_args()
    claims = [claim for claim in CLAIMS if claim.method.split()[0] in asked.methods]
    experiments = list(dict.fromkeys(claim.experiment for claim in claims))
    wanted = [(experiment, seed) for experiment in experiments for seed in asked.seeds]
    with ThreadPoolExecutor(asked.jobs) as pool:
        done = list(pool.map(lambda one: train(*one, asked.out), wanted))
    runs = {e: [run for (of, _), run in zip(wanted, done, strict=True) if of == e] for e in experiments}
    names = ("method", "what", "before", "after", "per seed", "gain over seeds", "over problems", "expected: seeds")
    page = [INTRODUCTION.format(seeds=", ".join(map(str, asked.seeds)), freedom=len(asked.seeds) - 1)]
    page += [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    page += [line(claim, runs[claim.experiment]) for claim in claims]
    if FCP in runs:
        page += [FEEDBACK, *rounds(runs[FCP])]
    page += [COSTS, *costs(experiments, runs)]
    asked.page.parent.mkdir(exist_ok=True)
    asked.page.write_text("\n".join(page) + "\n")
    print(asked.page.read_text())


if __name__ == "__main__":
    main()
