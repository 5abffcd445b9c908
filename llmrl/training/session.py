"""A run from start to end: stages one after the other, checkpoints, evaluations, the report."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from safetensors import SafetensorError

from llmrl import observe, references
from llmrl.ahead import Ahead
from llmrl.api import Result
from llmrl.combinations import cautions
from llmrl.composition import build_stage as build_algorithm
from llmrl.composition import replays
from llmrl.demands import refuse_spread
from llmrl.durable import commit, draft_of
from llmrl.errors import CheckpointError, LlmrlError
from llmrl.faults import reach
from llmrl.loop import Loop
from llmrl.measure import measure
from llmrl.policy.model import Policy
from llmrl.pool import Pool
from llmrl.recipe import Recipe
from llmrl.redaction import redact
from llmrl.run import StageRun, build_stage, first_policy
from llmrl.scoring import make_scorers
from llmrl.tracking.folder import RunFolder
from llmrl.tracking.jsonl import write_text
from llmrl.tracking.log import Log
from llmrl.tracking.panel import Panel, make_panel
from llmrl.tracking.report import write_report
from llmrl.tracking.summary import summary
from llmrl.training import checkpoint
from llmrl.training.buffer import Buffer
from llmrl.training.places import FINISHED, Lock, demand_same, identity, place, prepare, unbegun
from llmrl.training.profile import profiled
from llmrl.training.ranks import Ranks, others_alive
from llmrl.training.saving import Saver
from llmrl.training.stopping import ENDED, Stop, Stopping

TROUBLES = {
    "update/skipped": "optimizer steps were skipped, because the gradient was not finite; weights and moments are as before",
    "update/split": "micro-batches did not fit into memory and were split; the gradient is the same",
}


def run(recipe: Recipe, scorers: list[Callable] = ()) -> Result:
    """Train every stage of the recipe; resumes where `run.resume` says so. Asked to end by SIGTERM, it keeps what is done
    and raises SystemExit(143); by Ctrl-C, KeyboardInterrupt.
    """
    algorithms = [build_algorithm(stage) for stage in recipe.stages]  # what cannot be is refused before anything loads
    for stage in recipe.stages:
        for named in (stage.scorers, *(evaluation.scorers for evaluation in stage.evaluation.values())):
            make_scorers(named)
    ranks = Ranks(recipe.run.tracking.trackers, recipe.run.out, recipe.run.parallel, recipe.run.rank_timeout)
    for stage, algorithm in zip(recipe.stages, algorithms, strict=True):
        refuse_spread(stage, algorithm, ranks.parallel)
    found = ranks.gather(place(recipe) if ranks.main else None)[0]
    lock = Lock(found.folder) if ranks.main else None
    if ranks.main:
        prepare(found, recipe.text)
    ranks.wait()
    session = None
    try:
        with Stopping(recipe.run.grace, always_hold=ranks.size > 1) as stopping:
            try:
                session = Session(recipe, ranks, RunFolder(found.folder), list(scorers), stopping)
                for line in found.said:
                    session.panel.message(line)
                with others_alive():
                    return session.run(found.resumed)
            except Stop as stop:
                stopping.hold()
                if session is not None:
                    session.keep(stop)
                raise (KeyboardInterrupt() if stop.name == "SIGINT" else SystemExit(ENDED)) from None
    except LlmrlError:
        if ranks.main:
            unbegun(found)
        raise
    finally:
        if session is not None:
            session.close()
        if lock is not None:
            lock.close()


class Session:
    """A run under way."""

    def __init__(self, recipe: Recipe, ranks: Ranks, folder: RunFolder, scorers: list[Callable], stopping: Stopping):
        self.recipe, self.ranks, self.folder, self.functions = recipe, ranks, folder, scorers
        self.stopping = stopping
        self.pool = Pool(next((s.scoring.workers for s in recipe.stages if s.scoring.workers), None))
        totals = {stage.name: stage.training.steps or 0 for stage in recipe.stages}
        self.panel: Panel = make_panel(recipe.run.tracking.panel if ranks.main else "off", totals)
        track = self.ranks.accelerator.log if recipe.run.tracking.trackers else None
        self.log = Log(folder, self.panel.message, track)
        self.saver = Saver(folder.path, ranks, self.log)
        self.stage: StageRun | None = None
        self.global_step = 0
        self.last: dict[str, Any] = {}

    def close(self) -> None:
        """End what works beside this thread."""
        if self.stage is not None and self.stage.ahead is not None:
            self.stage.ahead.close()
        self.pool.close()
        self.panel.close()

    def run(self, resumed: Path | None) -> Result:
        state = checkpoint.read_state(resumed) if resumed else {"stage": 0, "step": 0, "global_step": 0}
        self.global_step = self.saver.saved = state["global_step"]
        if resumed is not None:
            self.forget_later(resumed, state)
        trained = self.export_of(state["stage"] - 1)
        with self.ranks.accelerator.main_process_first():  # a model made on the spot is written once
            policy = first_policy(self.recipe, self.folder.path, trained)
        self.ranks.prepare(policy)
        processes = f"{self.ranks.size} processes ({self.ranks.parallel})" if self.ranks.size > 1 else "1 process"
        self.panel.message(
            f"{self.folder.path}: {self.recipe.path.name}, {processes}, {policy.device.type}, seed {self.recipe.run.seed}"
        )
        if self.ranks.size == 1 and self.recipe.run.parallel != "auto":
            self.panel.message(
                f"careful: parallel={self.recipe.run.parallel} shares among several processes, and this is one. Start with "
                "--num-processes N, or leave it out."
            )
        if self.ranks.main and resumed is None:
            parameters = sum(p.numel() for p in policy.module.parameters())
            methods = " → ".join(dict.fromkeys(stage.algorithm.get("name", stage.name) for stage in self.recipe.stages))
            self.log.event(
                "start",
                model=self.recipe.run.model.path or "made on the spot",
                parameters=parameters,
                algorithm=methods,
                device=policy.device.type,
                processes=self.ranks.size,
                seed=self.recipe.run.seed,
            )
        if self.recipe.run.tracking.trackers and self.ranks.main:
            config, start = {"recipe": redact(self.recipe.text)}, self.ranks.accelerator.init_trackers
            self.log.attempt("trackers", lambda: start("llmrl", config=config), "metrics.jsonl has every row")
        memory = None
        for index in range(state["stage"], len(self.recipe.stages)):
            stage = self.stage = build_stage(
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
            self.saver.boundary = None  # the optimizer that it belongs to is gone
            start, owed = 0, []
            if resumed is not None and index == state["stage"]:
                self.restore(stage, resumed, state)
                start, owed = state["step"], state.get("ahead", [])
            if stage.scorers or not replays(stage.config.rollout.engine):
                owner = {"recipe": identity(self.recipe, self.functions), "steps": stage.steps}
                stage.buffer = Buffer(
                    self.folder.path, index, owner, self.ranks, self.log, stage.config.rollout.staleness > 0
                )
                if self.ranks.main:
                    stage.buffer.forget(start)  # it may have been killed between the checkpoint and this
            if stage.config.rollout.staleness:
                stage.ahead = Ahead(stage.config.rollout.staleness, stage.version, owed)
            self.train(stage, policy, start)
            memory = stage.memory
            stage.close()
        return self.finish(policy)

    def restore(self, stage: StageRun, resumed: Path, state: dict[str, Any]) -> None:
        """Put what a checkpoint holds into the stage that it was made in."""
        if state["prompts"] != stage.prompts.digest:
            raise CheckpointError(
                f"data.source of stage {stage.config.name}: its prompts are not those that {resumed} was trained on. "
                "Bring the data back, or start a new run with another name=…"
            )
        updater = stage.updater
        checkpoint.load(resumed, updater.policy, updater.optimizer)
        stage.version, stage.memory, stage.states = state["version"], state["memory"], state["states"]
        stage.drawn, stage.feedback_cut = state["drawn"], state["feedback_cut"]
        updater.restore(state.get("updater"))
        self.saver.note(stage, state)

    def progress(self, stage: StageRun, step: int) -> dict[str, Any]:
        """What goes into a checkpoint beside weights and optimizer: plain data that nothing changes later."""
        return {
            "stage": stage.index,
            "step": step,
            "global_step": self.global_step,
            "version": stage.version,
            "memory": stage.memory,
            "states": dict(stage.states),
            "drawn": stage.drawn,
            "ahead": stage.ahead.listed() if stage.ahead is not None else [],
            "feedback_cut": stage.feedback_cut,
            "updater": stage.updater.kept(),
            "prompts": stage.prompts.digest,
            "recipe": identity(self.recipe, self.functions),
        }

    def train(self, stage: StageRun, policy: Policy, start: int) -> None:
        """All steps of one stage from `start` on."""
        loop = Loop(stage, self.ranks, self.recipe.run.seed, self.stopping.hold)
        config, name = stage.config, stage.config.name
        self.panel.stage(name, stage.steps)
        report = stage.prompts.report
        self.panel.message(f"{name}: {report}{f'; quarantine-{name}.jsonl says why' if report.reasons else ''}")
        if report.reasons and self.ranks.main:
            self.log.quarantine(name, report.reasons)
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
        if start == 0 or not self.measured(name, start):
            self.measure(loop, start)
        step = loop.step
        if self.recipe.run.profile:
            folder = self.folder.path / "profile" / (name if len(self.recipe.stages) > 1 else "")
            step = profiled(step, stage.steps - start, folder, self.ranks.rank, self.panel.message)
        for number in range(start, stage.steps):
            self.look_ahead(loop, number, start)
            set_seed(loop.seed_of("generators", number) % 2**32)  # what draws from them draws the same after a resume
            done = step(number)
            self.global_step += 1
            row = observe.describe(done, [s.name for s in stage.scorers], self.ranks)
            for what, name_of in TROUBLES.items():
                if row.get(what):
                    self.panel.message(f"ALERT: step {number + 1}: {row[what]} {name_of}")
            sample = self.keep_rollouts(done, number)
            self.write(row, name, number + 1, sample)
            self.saver.note(stage, self.progress(stage, number + 1))
            self.breathe()
            self.measure(loop, number + 1)
            if number + 1 < stage.steps and self.saver.due(config.training.save_every, number + 1):
                self.save()
        self.export(policy, self.folder.path / "stages" / name)
        self.save()

    def breathe(self) -> None:
        """Between two steps: where the run was asked to end, it does."""
        self.stopping.release(any(self.ranks.gather(self.stopping.asked is not None)))

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
            found = measure(loop, self.log, self.global_step, due)
            self.write(found | {"time/evaluate": time.perf_counter() - began}, stage.config.name, step)

    def measured(self, name: str, step: int) -> bool:
        """Whether metrics.jsonl has the measurement of that step: the run may have been killed ahead of it."""
        rows = self.folder.metrics() if self.ranks.main else []
        found = any(row["stage"] == name and row["step"] == step and "time/evaluate" in row for row in rows)
        return self.ranks.gather(found)[0]

    def save(self) -> None:
        """A checkpoint of the last step's end, if there is none yet."""
        self.stopping.hold()
        self.saver.commit()
        self.ranks.wait()
        self.breathe()

    def keep(self, stop: Stop) -> None:
        """What a run does that was asked to end."""
        self.saver.commit()
        if self.ranks.main:
            self.log.event("stop", signal=stop.name, global_step=self.saver.saved)
        self.panel.message(f"ended by {stop.name} after step {self.saver.saved}; the same command goes on from there")

    def export(self, policy: Policy, target: Path) -> None:
        """Write the model beside its place and rename it in, so that a half-written export is never loaded."""
        draft = draft_of(target)
        try:
            policy.export(draft, write=self.ranks.main)
            if not self.ranks.main:
                return
            reach("exported")
            commit(draft, target)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(draft, ignore_errors=True)
            raise LlmrlError(
                f"{target}: the model could not be written: {error}. Free some space and repeat the command; it goes on from "
                f"step {self.saver.saved}."
            ) from error

    def finish(self, policy: Policy) -> Result:
        self.stopping.hold()  # the rest takes seconds
        report = self.folder.path / "report.html"
        self.export(policy, self.folder.path / "final")
        if self.ranks.main:
            self.log.attempt("report", lambda: write_report(self.folder.path), "llmrl report makes it at any time")
            write_text(self.folder.path / FINISHED, json.dumps(self.last, indent=1))
        if self.recipe.run.tracking.trackers:
            self.log.attempt("trackers", self.ranks.accelerator.end_training, "metrics.jsonl has every row")
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
            self.log.metrics(row)
        self.panel.step(row, sample)

    def keep_rollouts(self, done: observe.Collected, number: int) -> str | None:
        every = self.recipe.run.tracking.rollouts_every
        records = observe.records(done) if every and number % every == 0 else []
        everyone = [r for part in self.ranks.gather(records) for r in part]
        if everyone and self.ranks.main:
            self.log.rollouts(self.global_step, everyone)
        return done.groups[0].rollouts[0].text if done.groups and done.groups[0].rollouts else None

    def export_of(self, index: int) -> str | None:
        """The export of a finished stage, None before the first."""
        return str(self.folder.path / "stages" / self.recipe.stages[index].name) if index >= 0 else None

    def forget_later(self, resumed: Path, state: dict[str, Any]) -> None:
        """Drop what was written after the checkpoint; refuse one that another recipe wrote."""
        demand_same(self.folder.path, resumed, state, self.recipe, self.functions)
        if self.ranks.main:
            checkpoint.forget_after(self.folder.path, state["global_step"])  # before the rows that only they know of
            self.folder.truncate_metrics(self.recipe.stages[state["stage"]].name, state["global_step"])
            self.log.event("resume", global_step=state["global_step"])
            for row in self.folder.metrics():
                self.last |= {key: value for key, value in row.items() if key not in ("global_step", "stage", "step")}
        self.panel.message(f"resuming {self.folder.path} after step {state['global_step']}")
        wrote = checkpoint.processes_of(resumed) or self.ranks.size
        if wrote != self.ranks.size:
            self.panel.message(
                f"careful: {resumed.name} was written by {wrote} processes and goes on with {self.ranks.size}; the updates are "
                "the same up to rounding"
            )
