"""When a checkpoint is due, and what becomes of one that cannot be written."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from llmrl.durable import fsync
from llmrl.run import StageRun
from llmrl.tracking.log import Log
from llmrl.training import checkpoint
from llmrl.training.ranks import Ranks

PAUSE = 30.0  # seconds between automatic checkpoints at least
SHARE = 20  # and as many times as long as the last one took: writing them is at most a twentieth of the time


class Saver:
    """The checkpoints of a run. saved: global step of the newest one."""

    def __init__(self, folder: Path, ranks: Ranks, log: Log):
        self.folder, self.ranks, self.log, self.saved = folder, ranks, log, 0
        self.boundary: tuple[StageRun, dict[str, Any]] | None = None
        self.last, self.cost = time.monotonic(), 0.0

    def note(self, stage: StageRun, state: dict[str, Any]) -> None:
        """The end of a step: the state that belongs to the weights until the next update begins."""
        self.boundary = (stage, state)

    def due(self, every: int | None, done: int) -> bool:
        """Whether to save after `done` steps of a stage. every: steps between checkpoints, 0 for none, None for by time."""
        if every is not None:
            return every > 0 and done % every == 0
        return self.ranks.gather(time.monotonic() - self.last >= max(PAUSE, SHARE * self.cost))[0]

    def commit(self) -> None:
        """Write the state of the last step's end, unless that is done. Where there is no room the run goes on without.

        All processes have to call it; the first one writes.
        """
        due = self.boundary is not None and self.boundary[1]["global_step"] > self.saved
        if not self.ranks.gather(due)[0]:
            return
        stage, state = self.boundary
        if stage.ahead is not None:
            stage.ahead.store(state["ahead"], stage.buffer, stage.config.scoring, self.ranks)
        began = time.monotonic()
        if self.log.attempt("checkpoints", self._save, "the one before stays the newest"):
            self.saved = state["global_step"]
            if stage.buffer is not None and self.ranks.main:
                stage.buffer.forget(state["step"])
        self.last = time.monotonic()
        self.cost = self.last - began

    def _save(self) -> None:
        stage, state = self.boundary
        refused = self.ranks.gather(self._unwritten() if self.ranks.main else None)[0]
        if refused is not None:
            raise OSError(refused)
        updater, keep = stage.updater, stage.config.training.keep_checkpoints
        checkpoint.save(
            self.folder,
            state["global_step"],
            updater.policy,
            updater.optimizer,
            state,
            keep,
            processes=self.ranks.size,
            write=self.ranks.main,
        )

    def _unwritten(self) -> str | None:
        """Why metrics.jsonl may lack rows; None where it has every one: a checkpoint never knows of steps that it lacks."""
        if self.log.waiting:
            return "rows of metrics are still waiting to be written"
        metrics = self.folder / "metrics.jsonl"
        try:
            if metrics.exists():
                fsync(metrics)
        except OSError as error:
            return str(error)
        return None
