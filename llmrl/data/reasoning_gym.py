"""Prompts of reasoning-gym's generated tasks (the optional package reasoning-gym)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import version
from itertools import count, islice
from typing import Any

from llmrl.data.read import Row
from llmrl.data.reasoning_gym_audit import PASSED, REFUSED, VERSION
from llmrl.data.tasks import in_split, turn
from llmrl.errors import DataError, nearest

ASK = "\n\nWrite only the answer between <answer> and </answer>."
TRIES = 2_000  # entries of one split in a row before a task is given up as too small


def reasoning_gym(
    *, task: str, size: int = 512, seed: int = 0, split: str = "train", config: dict[str, Any] | None = None
) -> list[Row]:
    """Questions of one reasoning-gym task whose scorer stood up to our audit. For the scorer `reasoning_gym`.

    task: its name there, such as chain_sum. config: its own options. The column `reasoning_gym` says how an entry is
    made again, the reference is its stored answer. Raises DataError for a task that failed the audit, with the reason,
    and where the package is not installed.
    """
    audited(task)
    return list(islice(entries(task, seed, split, config or {}), size))


def audited(task: str) -> None:
    """DataError unless the task's scorer passed the audit."""
    if task in REFUSED:
        raise DataError(f"reasoning_gym task {task} is refused: {REFUSED[task]} (audit of version {VERSION}).")
    if task not in PASSED:
        raise DataError(f"no reasoning_gym task {task!r}.{nearest(task, PASSED)} Tasks: {', '.join(PASSED)}.")


def entries(task: str, seed: int, split: str, config: dict[str, Any]) -> Iterator[Row]:
    """Rows of any task, audited or not, without end."""
    installed()
    wanted, misses = in_split(split), 0
    for index in count():
        entry = made(task, seed, index, config)
        if misses > TRIES:
            raise DataError(
                f"reasoning_gym task {task} has no {split} problems in {TRIES:,} entries; use the other split."
            )
        if not wanted(entry["question"]):
            misses += 1
            continue
        misses = 0
        how = {"task": task, "seed": seed, "index": index, "config": config}
        yield {"prompt": turn("user", entry["question"] + ASK), "reference": entry["answer"], "reasoning_gym": how}


def made(task: str, seed: int, index: int, config: dict[str, Any]) -> dict[str, Any]:
    """One entry: question, answer, metadata; the same for the same arguments."""
    return dataset(task, seed, index, json.dumps(config))[index]


def dataset(task: str, seed: int, index: int, config: str) -> Any:
    """reasoning-gym's data set, large enough to hold the entry."""
    from reasoning_gym import create_dataset

    return create_dataset(task, seed=seed, size=index + 1, **json.loads(config))


def installed() -> None:
    """DataError where the package is missing or another version than the audited one."""
    try:
        found = version("reasoning-gym")
    except ModuleNotFoundError as error:
        raise DataError("reasoning-gym is not installed. Next: pip install 'llmrl[reasoning-gym]'.") from error
    if found != VERSION:
        raise DataError(
            f"reasoning-gym is {found}; its scorers were audited as {VERSION}. Next: pip install reasoning-gym=={VERSION}."
        )
