"""A run from start to end: stages one after the other, checkpoints, evaluations, the report."""

from __future__ import annotations

import fcntl
import itertools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from llmrl import observe, references
from llmrl.api import Result
from llmrl.combinations import cautions
from llmrl.composition import build_stage as build_algorithm
from llmrl.errors import CheckpointError, LlmrlError
from llmrl.loop import Loop
from llmrl.measure import measure
from llmrl.policy.model import Policy
from llmrl.pool import Pool
from llmrl.recipe import Recipe
from llmrl.run import StageRun, build_stage, first_policy
from llmrl.scoring import make_scorers
from llmrl.tracking.folder import RunFolder
from llmrl.tracking.panel import Panel, make_panel
from llmrl.tracking.report import write_report
from llmrl.tracking.summary import summary
from llmrl.training import checkpoint
from llmrl.training.ranks import Ranks

FINISHED = "result.json"


def run(recipe: Recipe, scorers: list[Callable] = ()) -> Result:
    """Train every stage of the recipe; resumes where `run.resume` says so."""
    for stage in recipe.stages:  # an option of a part or scorer that does not exist is refused before anything loads
        build_algorithm(stage)
        for named in (stage.scorers, *(evaluation.scorers for evaluation in stage.evaluation.values())):
            make_scorers(named)
    ranks = Ranks(recipe.run.tracking.trackers, recipe.run.out)
    path, resumed, passed_over = place(recipe, ranks)
    folder = RunFolder(path)
    lock = locked(path) if ranks.main else None
    if ranks.main and resumed is None:
        folder = RunFolder.create(path, recipe.text)
    ranks.wait()
    session = Session(recipe, ranks, folder, list(scorers))
    for line in passed_over:
        session.panel.message(f"checkpoint passed over, {line}")
    try:
        return session.run(resumed)
    finally:
        session.pool.close()
        session.panel.close()
        if lock is not None:
            lock.close()


def locked(path: Path) -> IO[str]:
    """A hold on the run's folder until the file is closed or the process ends. LlmrlError when another process has it."""
    path.mkdir(parents=True, exist_ok=True)
    file = (path / "lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise LlmrlError(
            f"{path} is in use by another run. Wait for it, or start this one with another name=…"
        ) from error
    return file


class Session:
    """A run under way."""

    def __init__(self, recipe: Recipe, ranks: Ranks, folder: RunFolder, scorers: list[Callable]):
        self.recipe, self.ranks, self.folder, self.functions = recipe, ranks, folder, scorers
        self.pool = Pool(next((s.scoring.workers for s in recipe.stages if s.scoring.workers), None))
        totals = {stage.name: stage.training.steps or 0 for stage in recipe.stages}
        self.panel: Panel = make_panel(recipe.run.tracking.panel if ranks.main else "off", totals)
        self.global_step = 0
        self.last: dict[str, Any] = {}

    def run(self, resumed: Path | None) -> Result:
        state = checkpoint.read_state(resumed) if resumed else {"stage": 0, "step": 0, "global_step": 0}
        self.global_step = state["global_step"]
        if resumed is not None:
            self.forget_later(state)
        trained = self.export_of(state["stage"] - 1)
        with self.ranks.accelerator.main_process_first():  # a model made on the spot is written once
            policy = first_policy(self.recipe, self.folder.path, trained)
        policy.wrapped = self.ranks.prepare(policy.module)
        self.panel.message(
            f"{self.folder.path}: {self.recipe.path.name}, {self.ranks.size} "
            f"process{'es' if self.ranks.size > 1 else ''}, {policy.device.type}, seed {self.recipe.run.seed}"
        )
        if self.ranks.main and resumed is None:
            parameters = sum(p.numel() for p in policy.module.parameters())
            methods = " → ".join(dict.fromkeys(stage.algorithm.get("name", stage.name) for stage in self.recipe.stages))
            self.folder.event(
                "start",
                model=self.recipe.run.model.path or "made on the spot",
                parameters=parameters,
                algorithm=methods,
                device=policy.device.type,
                processes=self.ranks.size,
                seed=self.recipe.run.seed,
            )
        if self.recipe.run.tracking.trackers and self.ranks.main:
            self.ranks.accelerator.init_trackers("llmrl", config={"recipe": self.recipe.text})
        memory = None
        for index in range(state["stage"], len(self.recipe.stages)):
            stage = build_stage(
                self.recipe,
                index,
                policy,
                self.ranks,
                self.folder.path,
                self.export_of(index - 1),
                self.pool,
                memory,
                self.functions,
            )
            start = 0
            if resumed is not None and index == state["stage"]:
                if state["prompts"] != stage.prompts.digest:
                    raise CheckpointError(
                        f"data.source of stage {stage.config.name}: its prompts are not those that {resumed} was trained on. "
                        "Bring the data back, or start a new run with another name=…"
                    )
                checkpoint.load(resumed, policy, stage.updater.optimizer)
                start, stage.version, stage.memory = state["step"], state["version"], state["memory"]
                stage.states, stage.drawn, stage.feedback_cut = state["states"], state["drawn"], state["feedback_cut"]
            self.train(stage, policy, start)
            memory = stage.memory
            stage.close()
        return self.finish(policy)

    def train(self, stage: StageRun, policy: Policy, start: int) -> None:
        """All steps of one stage from `start` on."""
        loop = Loop(stage, self.ranks, self.recipe.run.seed)
        config, name = stage.config, stage.config.name
        self.panel.stage(name, stage.steps)
        self.panel.message(f"{name}: {stage.prompts.report}")
        for line in cautions(stage.algorithm):
            self.panel.message(f"{name}: careful: {line}")
        for evaluation, what in stage.measurements.items():
            if what.prompts.report.too_long or what.prompts.report.bad:
                self.panel.message(f"evaluation {evaluation}: {what.prompts.report}")
        if config.rollout.top_p < 1 or config.rollout.top_k > 0:
            self.panel.message(
                f"{name}: rollout.top_p or top_k cuts the distribution that is sampled from; the trainer's is not cut, so "
                "the two disagree by more than rounding. docs/monitors.md, logprob_gap, says what to do."
            )
        stage.engine.sync(stage.engine.context.policy, stage.version)
        if start == 0:
            self.measure(loop, 0)
        for number in range(start, stage.steps):
            self.look_ahead(loop, number, start)
            done = loop.step(number)
            self.global_step += 1
            row = observe.describe(done, [s.name for s in stage.scorers], self.ranks)
            sample = self.keep_rollouts(done, number)
            self.write(row, name, number + 1, sample)
            self.measure(loop, number + 1)
            every, last = config.training.save_every, number + 1 == stage.steps
            if last or (every and (number + 1) % every == 0):
                self.save(stage, policy, number + 1, last)

    def look_ahead(self, loop: Loop, number: int, start: int) -> None:
        """The rollouts ahead of training, at the start and as often as the algorithm asks."""
        before = loop.stage.algorithm.before
        if before is None:
            return
        every = before.refresh_every
        if number == start or (every and number % every == 0):
            references.look_ahead(loop, self.folder.path, number - number % every if every else 0, number)
            sampled, left = len(loop.stage.dealt), len(loop.stage.prompts) - len(loop.stage.dealt)
            self.panel.message(
                f"{loop.stage.config.name}: reference rollouts done; {sampled:,} prompts stay, {left:,} left out"
            )

    def measure(self, loop: Loop, step: int) -> None:
        """The evaluations that are due after a step of the stage: at its start, every so often, at its end."""
        stage = loop.stage
        due = []
        for name, what in stage.measurements.items():
            at, every = what.config.at_start, what.config.every
            if at if step == 0 else step == stage.steps or (every and step % every == 0):
                due.append(name)
        if due:
            began = time.perf_counter()
            found = measure(loop, self.folder, self.global_step, due)
            self.write(found | {"time/evaluate": time.perf_counter() - began}, stage.config.name, step)

    def save(self, stage: StageRun, policy: Policy, step: int, last: bool) -> None:
        if self.ranks.main:
            if last:
                self.export(policy, self.folder.path / "stages" / stage.config.name)
            done = {
                "stage": stage.index,
                "step": step,
                "global_step": self.global_step,
                "version": stage.version,
                "memory": stage.memory,
                "states": stage.states,
                "drawn": stage.drawn,
                "feedback_cut": stage.feedback_cut,
                "prompts": stage.prompts.digest,
                "recipe": identity(self.recipe, self.functions),
            }
            checkpoint.save(
                self.folder.path,
                self.global_step,
                policy,
                stage.updater.optimizer,
                done,
                stage.config.training.keep_checkpoints,
            )
        self.ranks.wait()

    def export(self, policy: Policy, target: Path) -> None:
        """Write the model beside its place and rename it in, so that a half-written export is never loaded."""
        import shutil

        draft = target.with_name(f"{target.name}.tmp")
        shutil.rmtree(draft, ignore_errors=True)
        policy.export(draft)
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)

    def finish(self, policy: Policy) -> Result:
        report = self.folder.path / "report.html"
        if self.ranks.main:
            self.export(policy, self.folder.path / "final")
            (self.folder.path / FINISHED).write_text(json.dumps(self.last, indent=1))
            report = write_report(self.folder.path)
        if self.recipe.run.tracking.trackers:
            self.ranks.accelerator.end_training()
        self.ranks.wait()
        self.panel.close()
        if self.ranks.main and self.recipe.run.tracking.panel != "off":
            print(summary(self.folder))
        return Result(self.folder.path, report, self.last)

    def write(self, metrics: dict[str, Any], stage: str, step: int, sample: str | None = None) -> None:
        """One row to the folder, the panel and the trackers."""
        if not metrics:
            return
        row = {"global_step": self.global_step, "stage": stage, "step": step} | metrics
        self.last |= metrics
        if self.ranks.main:
            self.folder.append_metrics(row)
            if self.recipe.run.tracking.trackers:
                self.ranks.accelerator.log(metrics, step=self.global_step)
        self.panel.step(row, sample)

    def keep_rollouts(self, done: observe.Collected, number: int) -> str | None:
        every = self.recipe.run.tracking.rollouts_every
        records = observe.records(done) if every and number % every == 0 else []
        everyone = [r for part in self.ranks.gather(records) for r in part]
        if everyone and self.ranks.main:
            self.folder.write_rollouts(self.global_step, everyone)
        return done.groups[0].rollouts[0].text if done.groups and done.groups[0].rollouts else None

    def export_of(self, index: int) -> str | None:
        """The export of a finished stage, None before the first."""
        return str(self.folder.path / "stages" / self.recipe.stages[index].name) if index >= 0 else None

    def forget_later(self, state: dict[str, Any]) -> None:
        """Drop what was written after the checkpoint; refuse one that another recipe wrote."""
        differ = different(state["recipe"], identity(self.recipe, self.functions))
        if differ:
            raise CheckpointError(
                f"{self.folder.path} was started with another recipe: {', '.join(differ[:5])} differ. Use "
                "the recipe.yaml in that folder, or start a new run with another name=…"
            )
        if self.ranks.main:
            self.folder.truncate_metrics(self.recipe.stages[state["stage"]].name, state["global_step"])
            self.folder.event("resume", global_step=state["global_step"])
            checkpoint.forget_after(self.folder.path, state["global_step"])
            for row in self.folder.metrics():
                self.last |= {key: value for key, value in row.items() if key not in ("global_step", "stage", "step")}
        self.panel.message(f"resuming {self.folder.path} after step {state['global_step']}")


def place(recipe: Recipe, ranks: Ranks) -> tuple[Path, Path | None, list[str]]:
    """(folder of the run, checkpoint to resume from or None, checkpoints passed over).

    'auto' goes on with an unfinished run that has a checkpoint; a finished one is left alone and the new run is numbered.
    """
    run = recipe.run
    base = Path(run.out) / (run.name or recipe.path.stem)
    found: tuple[Path, Path | None, list[str]] = (base, None, [])
    refused: list[str] = []
    if run.resume not in ("auto", "never"):
        path = Path(run.resume)
        problem = checkpoint.damage(path)
        if problem is not None:
            raise CheckpointError(f"resume: {path}: {problem}. Name a checkpoint folder, or use resume=auto.")
        return path.parent, path, []
    for number in itertools.count(1):
        folder = base if number == 1 else base.with_name(f"{base.name}-{number}")
        if not folder.exists():
            found = (folder, None, refused)
            break
        if run.resume == "auto" and not (folder / FINISHED).exists():
            path, damaged = checkpoint.newest(folder)
            refused += [f"{folder}: {line}" for line in damaged]
            if path is not None:
                found = (folder, path, refused)
                break
    return ranks.gather(found)[0]


def identity(recipe: Recipe, functions: Sequence[Callable]) -> dict[str, Any]:
    """What a checkpoint must have in common with the recipe that goes on from it."""
    keep = ("name", "data", "algorithm", "scorers", "scoring", "rollout", "training")
    free = {"training": {"steps", "save_every", "keep_checkpoints", "tokens_per_micro_batch", "max_logprob_gap"}}
    stages = [stage.model_dump(mode="json", include=set(keep), exclude=free) for stage in recipe.stages]
    return {
        "model": recipe.run.model.model_dump(mode="json"),
        "seed": recipe.run.seed,
        "stages": stages,
        "functions": [f.__qualname__ for f in functions],
    }


def different(old: Any, new: Any, at: str = "") -> list[str]:
    """Dotted keys under which two plain values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            d for k in sorted({*old, *new}) for d in different(old.get(k), new.get(k), f"{at}.{k}" if at else str(k))
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for i, (a, b) in enumerate(zip(old, new, strict=True)) for d in different(a, b, f"{at}[{i}]")]
    return [] if old == new else [at]
