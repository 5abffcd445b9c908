"""Where a run goes, which process may write there, and what it may go on from."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError

from llmrl.config import Model
from llmrl.durable import DRAFT, clear_drafts
from llmrl.errors import CheckpointError, LlmrlError
from llmrl.recipe import Recipe, StageConfig, resolve
from llmrl.tracking.folder import RunFolder
from llmrl.training import checkpoint

FINISHED = "result.json"
KEPT = {"name", "data", "algorithm", "scorers", "scoring", "rollout", "training"}  # of a stage, by what results hang on
FREE = {
    "training": {
        "steps",
        "save_every",
        "keep_checkpoints",
        "tokens_per_micro_batch",
        "max_logprob_gap",
        "max_skipped",
    }
}
PREPARED = {"lock", "recipe.yaml", "versions.json"}  # what is there before a run begins


@dataclass(frozen=True)
class Place:
    """A run's folder. resumed: the checkpoint to go on from. again: the run there was ended before its first checkpoint and
    is begun anew. said: what the user should know of the choice.
    """

    folder: Path
    resumed: Path | None = None
    again: bool = False
    said: list[str] = field(default_factory=list)


def place(recipe: Recipe) -> Place:
    """Where the recipe's run goes.

    'auto' goes on with an unfinished run from its newest valid checkpoint; one of the same recipe that has none yet is begun
    again where it is. Anything else that is there, a finished run above all, is left alone and the new run is numbered.
    """
    run = recipe.run
    base = Path(run.out) / (run.name or recipe.path.stem)
    said: list[str] = []
    if run.resume not in ("auto", "never"):
        path = Path(run.resume)
        problem = checkpoint.damage(path)
        if problem is not None:
            raise CheckpointError(f"resume: {path}: {problem}. Name a checkpoint folder, or use resume=auto.")
        return Place(path.parent, path)
    for number in itertools.count(1):
        folder = base if number == 1 else base.with_name(f"{base.name}-{number}")
        if not folder.exists() or all(p.name == "lock" or DRAFT.fullmatch(p.name) for p in folder.iterdir()):
            return Place(folder, said=said)
        if run.resume == "never" or (folder / FINISHED).exists():
            continue
        path, damaged = checkpoint.newest(folder)
        said += [f"checkpoint passed over, {folder}: {line}" for line in damaged]
        if path is not None:
            return Place(folder, path, said=said)
        if damaged:
            said.append(f"{folder} has no checkpoint that is whole; it is left as it is, and the run begins beside it")
        elif same_run(folder, recipe):
            return Place(
                folder, None, True, [*said, f"{folder} was ended before its first checkpoint and begins again"]
            )
    raise AssertionError


def same_run(folder: Path, recipe: Recipe) -> bool:
    """Whether the run in the folder was started with this recipe, as far as its results depend on it."""
    try:
        return not different(identity(resolve(folder / "recipe.yaml"), ()), identity(recipe, ()))
    except (LlmrlError, OSError):
        return False


class Lock:
    """A hold on a run's folder until `close` or the end of the process. LlmrlError when another process has it."""

    def __init__(self, path: Path):
        path.mkdir(parents=True, exist_ok=True)
        self.file: IO[str] = (path / "lock").open("a+")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.file.seek(0)
            holder = self.file.read(200).strip() or "another run"
            self.file.close()
            raise LlmrlError(
                f"{path} is in use by {holder}. Wait for it, or start this one with another name=…"
            ) from error
        self.file.truncate(0)
        self.file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def prepare(found: Place, text: str) -> None:
    """Make the folder ready for its run, whose lock is held. text: of the recipe."""
    clear_drafts(found.folder)
    if found.resumed is None:
        folder = RunFolder(found.folder)
        if found.again:
            folder.truncate_metrics("", -1)
            (found.folder / "metrics.jsonl").unlink(missing_ok=True)
            folder.event("again")
        RunFolder.create(found.folder, text)


def unbegun(found: Place) -> None:
    """Remove the folder of a run that has failed before it did anything: the same command, mended, is to find the name free."""
    if found.resumed is None and {path.name for path in found.folder.iterdir()} <= PREPARED:
        shutil.rmtree(found.folder)


def identity(recipe: Recipe, functions: Sequence[Callable]) -> dict[str, Any]:
    """What a checkpoint must have in common with the recipe that goes on from it."""
    return {
        "model": recipe.run.model.model_dump(mode="json"),
        "seed": recipe.run.seed,
        "stages": [stage.model_dump(mode="json", include=KEPT, exclude=FREE) for stage in recipe.stages],
        "functions": [f.__qualname__ for f in functions],
    }


def of_today(told: dict[str, Any]) -> dict[str, Any]:
    """The identity that a checkpoint tells, with their defaults for keys that recipes have had only since then."""
    try:
        stages = [StageConfig.model_validate(stage) for stage in told["stages"]]
        model = Model.model_validate(told["model"])
    except (ValidationError, KeyError, TypeError):  # keys that have gone since, or no identity at all: they differ
        return told
    filled = [stage.model_dump(mode="json", include=KEPT, exclude=FREE) for stage in stages]
    return told | {"model": model.model_dump(mode="json"), "stages": filled}


def demand_same(
    folder: Path, resumed: Path, state: dict[str, Any], recipe: Recipe, functions: Sequence[Callable]
) -> None:
    """CheckpointError for a checkpoint that another recipe wrote."""
    differ = different(of_today(state["recipe"]), json.loads(json.dumps(identity(recipe, functions))))
    if differ:
        raise CheckpointError(
            f"{folder} was started with another recipe: {', '.join(differ[:5])} differ. Use "
            "the recipe.yaml in that folder, or start a new run with another name=…"
        )
    if not 0 <= state["stage"] < len(recipe.stages):
        raise CheckpointError(f"{resumed}: its stage {state['stage']} is none of the recipe's {len(recipe.stages)}.")


def different(old: Any, new: Any, at: str = "") -> list[str]:
    """Dotted keys under which two plain values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            d for k in sorted({*old, *new}) for d in different(old.get(k), new.get(k), f"{at}.{k}" if at else str(k))
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for i, (a, b) in enumerate(zip(old, new, strict=True)) for d in different(a, b, f"{at}[{i}]")]
    return [] if old == new else [at]
