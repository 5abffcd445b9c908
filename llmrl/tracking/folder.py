"""The folder of a run: everything that is kept, as plain files that a person can read.

recipe.yaml  versions.json  metrics.jsonl  events.jsonl
rollouts/step_000123.jsonl             what was sampled at that global step
evaluations/<name>/000123.jsonl        answers to a held-out measurement taken after that global step
report.html                            written by llmrl.tracking.report
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmrl.errors import LlmrlError
from llmrl.redaction import redact
from llmrl.tracking.jsonl import append_line, plain, read_lines, write_lines, write_text
from llmrl.tracking.text import is_number
from llmrl.tracking.versions import versions

Row = dict[str, Any]
STEP = re.compile(r"[0-9]{6,9}")  # as a file's name has it


class RunFolder:
    """Reads and writes one run. Reading changes nothing, so a run can be looked at while it is written.

    Metrics rows are flat and carry `stage` (name), `step` (within the stage) and `global_step`.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)

    @classmethod
    def create(cls, path: Path | str, recipe: str) -> RunFolder:
        """A new run from the text of its resolved recipe. Raises LlmrlError where the folder already holds a run."""
        folder = cls(path)
        if (folder.path / "metrics.jsonl").exists():
            raise LlmrlError(
                f"{folder.path} already holds a run and nothing is overwritten. Resume it (resume=auto), "
                "give this one another name (name=...), or move the folder away."
            )
        write_text(folder.path / "recipe.yaml", recipe)
        write_text(folder.path / "versions.json", json.dumps(versions(), indent=1))
        return folder

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """A run that is there already. Raises LlmrlError where the folder holds none."""
        folder = cls(path)
        if not (folder.path / "recipe.yaml").exists():
            raise LlmrlError(f"{folder.path} holds no run: there is no recipe.yaml in it. Name the folder of a run.")
        return folder

    def recipe(self) -> str:
        """The text of the resolved recipe; what is not UTF-8 in it as question marks."""
        return (self.path / "recipe.yaml").read_text(encoding="utf-8", errors="replace")

    def versions(self) -> dict[str, Any]:
        """What the run stood on; see `llmrl.tracking.versions`. Raises LlmrlError where the file is damaged."""
        path = self.path / "versions.json"
        try:
            found = json.loads(path.read_bytes())
            packages = {str(name): str(version) for name, version in found["packages"].items()}
            plainly = {key: str(found[key]) for key in ("python", "platform", "processors")}
            return plainly | {"packages": packages, "commit": found["commit"] and str(found["commit"])}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise LlmrlError(
                f"{path} is damaged ({type(error).__name__}: {error}). Bring it back, or put a copy from another run of this "
                "machine there: it only says which versions were used."
            ) from error

    def append_metrics(self, row: Row) -> None:
        """One row to metrics.jsonl. Numbers that are not finite become null, counted under metrics/not_finite."""
        row = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in row.items()}
        lost = sum(isinstance(value, float) and plain(value) is None for value in row.values())
        append_line(self.path / "metrics.jsonl", row | ({"metrics/not_finite": lost} if lost else {}))

    def metrics(self) -> list[Row]:
        """Every metrics row, in the order written; what is neither a number nor the stage's name becomes None.

        Raises LlmrlError for a row without stage, step and global_step.
        """
        path = self.path / "metrics.jsonl"
        return [_metrics(row, f"{path}: row {number}") for number, row in enumerate(read_lines(path), 1)]

    def event(self, kind: str, **facts: Any) -> None:
        """Note that something happened: the start (its facts head the report), a resume, a dropped checkpoint."""
        append_line(
            self.path / "events.jsonl",
            {"time": datetime.now(UTC).isoformat("T", "seconds"), "kind": kind} | redact(plain(facts)),
        )

    def events(self) -> list[Row]:
        """Every event, in the order written. Raises LlmrlError for one without kind and time."""
        path = self.path / "events.jsonl"
        rows = read_lines(path)
        for number, row in enumerate(rows, 1):
            if not all(isinstance(row.get(key), str) for key in ("kind", "time")):
                raise LlmrlError(f"{path}: row {number} has no kind and time. Remove that line and try again.")
        return rows

    def write_rollouts(self, step: int, records: Iterable[Row]) -> None:
        """Keep what was sampled at a global step."""
        write_lines(self.path / "rollouts" / f"step_{step:06d}.jsonl", records)

    def rollouts(self, step: int) -> list[Row]:
        """The records of a global step, none if none were kept. Raises LlmrlError for what is none."""
        return _records(self.path / "rollouts" / f"step_{step:06d}.jsonl")

    def steps_with_rollouts(self) -> list[int]:
        """Global steps, ascending."""
        stems = (file.stem.removeprefix("step_") for file in self.path.glob("rollouts/step_*.jsonl"))
        return sorted(int(stem) for stem in stems if STEP.fullmatch(stem))

    def write_evaluation(self, name: str, step: int, records: Iterable[Row]) -> None:
        """Keep the answers of an evaluation after a global step."""
        write_lines(self._evaluation(name, step), records)

    def evaluation(self, name: str, step: int) -> list[Row]:
        """The records of an evaluation after a global step, none if none were kept. Raises LlmrlError for what is none."""
        return _records(self._evaluation(name, step))

    def evaluations(self) -> dict[str, list[int]]:
        """{name: global steps with kept answers, ascending}, names in alphabetical order."""
        steps: dict[str, list[int]] = {}
        files = (file for file in self.path.glob("evaluations/*/*.jsonl") if STEP.fullmatch(file.stem))
        for file in sorted(files, key=lambda file: (file.parent.name, int(file.stem))):
            steps.setdefault(file.parent.name, []).append(int(file.stem))
        return steps

    def truncate_metrics(self, stage: str, global_step: int) -> None:
        """Drop what came after a checkpoint, so that nothing is doubled when the run goes on from it.

        Metrics rows, rollouts and evaluations of later global steps go, and so do rows of a later stage at the same
        global step (its measurement 'before'). Rows of the checkpoint's own step stay: measure first, then save.
        A global_step of -1 drops everything.
        """
        rows, written = self.metrics(), read_lines(self.path / "metrics.jsonl")
        place = {name: i for i, name in enumerate(dict.fromkeys(row["stage"] for row in rows))}
        last = (global_step, place.get(stage, len(place)))
        kept = [w for w, r in zip(written, rows, strict=True) if (r["global_step"], place[r["stage"]]) <= last]
        if len(kept) < len(rows):
            write_lines(self.path / "metrics.jsonl", kept)
        for step in self.steps_with_rollouts():
            if step > global_step:
                (self.path / "rollouts" / f"step_{step:06d}.jsonl").unlink()
        for name, steps in self.evaluations().items():
            for step in steps:
                if step > global_step:
                    self._evaluation(name, step).unlink()

    def _evaluation(self, name: str, step: int) -> Path:
        if "/" in name or name.startswith("."):
            raise LlmrlError(f"evaluation {name!r} cannot name a folder. Use letters, digits, '-' and '_'.")
        return self.path / "evaluations" / name / f"{step:06d}.jsonl"


def _metrics(row: Row, where: str) -> Row:
    """The row with numbers and names only. LlmrlError where its place in the run is not told."""
    steps = [row.get("step"), row.get("global_step")]
    if not isinstance(row.get("stage"), str) or not all(type(n) is int and 0 <= n < 10**9 for n in steps):
        raise LlmrlError(f"{where} has no stage, step and global_step. Remove that line and try again.")
    return {key: value if is_number(value) or key == "stage" else None for key, value in row.items()}


def _records(path: Path) -> list[Row]:
    """Rows of rollouts; what the report reads by its parts is of the kind that `observe` writes."""
    rows = read_lines(path)
    for number, row in enumerate(rows, 1):
        scores = row.get("scores") or {}
        whole = isinstance(scores, dict) and all(isinstance(one, dict) for one in scores.values())
        if not whole or not isinstance(row.get("prompt_id", ""), str) or not isinstance(row.get("ids") or [], list):
            raise LlmrlError(f"{path}: row {number} is no rollout. Remove that line and try again.")
    return rows
