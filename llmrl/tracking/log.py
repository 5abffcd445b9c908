"""What a run writes as it goes on. A full disk or a tracker that is down is said and counted, and costs no training."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from llmrl.errors import LlmrlError
from llmrl.faults import reach
from llmrl.tracking.folder import Row, RunFolder
from llmrl.tracking.jsonl import write_lines


class Log:
    """Writes into a run's folder and to its trackers.

    say: one line for the user. track: takes (metrics, global step); None: there are no trackers. Rows of metrics that cannot
    be written wait in memory and are written in order as soon as that works; records of rollouts and evaluations are lost.
    """

    def __init__(self, folder: RunFolder, say: Callable[[str], None], track: Callable[[Row, int], None] | None = None):
        self.folder, self.say, self.track = folder, say, track
        self.waiting: list[Row] = []
        self.failing: set[str] = set()
        self.failures: Counter[str] = Counter()

    def metrics(self, row: Row) -> None:
        """One row; it carries how much could not be written so far, where that is anything."""
        self.waiting.append(row | {f"alerts/{kind}": number for kind, number in self.failures.items()})
        self.attempt("metrics", self._append, "rows wait in memory")
        if self.track is not None:
            # the trackers' own copy: what they lack is in metrics.jsonl
            self.attempt("trackers", lambda: self.track(row, row["global_step"]), "metrics.jsonl has every row")

    def rollouts(self, step: int, records: list[Row]) -> None:
        self.attempt("rollouts", lambda: self.folder.write_rollouts(step, records), "those of this step are not kept")

    def write_evaluation(self, name: str, step: int, records: Iterable[Row]) -> None:
        self.attempt("evaluations", lambda: self.folder.write_evaluation(name, step, records), "answers are not kept")

    def quarantine(self, stage: str, reasons: Iterable[str]) -> None:
        """The rows of a stage's data that could not be used, each with its place and reason."""
        rows = [{"reason": reason} for reason in reasons]
        path = self.folder.path / f"quarantine-{stage}.jsonl"
        self.attempt("quarantine", lambda: write_lines(path, rows), "the rows are left out without a record")

    def event(self, kind: str, **facts: Any) -> None:
        self.attempt("events", lambda: self.folder.event(kind, **facts), "events.jsonl lacks this one")

    def attempt(self, what: str, write: Callable[[], Any], price: str) -> bool:
        """Whether it could be written. The first failure of a row of them is said, and so is their end."""
        try:
            write()
        except Exception as error:
            if (
                not isinstance(error, OSError | LlmrlError) and what != "trackers"
            ):  # a tracker may fail in any way it likes
                raise
            self.failures[what] += 1
            if what not in self.failing:
                self.failing.add(what)
                full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
                mend = "Free some space" if full else "Look at what it says"
                self.say(f"ALERT: {what} cannot be written: {error}. Training goes on; {price}. {mend}.")
            return False
        if what in self.failing:
            self.failing.remove(what)
            self.say(f"{what} are written again, after {self.failures[what]} failures")
        return True

    def _append(self) -> None:
        while self.waiting:
            reach("metrics")
            self.folder.append_metrics(self.waiting[0])
            self.waiting.pop(0)
            reach("reported")
