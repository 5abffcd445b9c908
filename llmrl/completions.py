"""Stored answers: the file that an evaluation writes as it samples, and reading it, or any like it, back to be judged."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from llmrl.config import Data
from llmrl.data.columns import identity
from llmrl.data.formats import to_prompt
from llmrl.data.read import Row, read_rows
from llmrl.errors import DataError, LlmrlError, RecipeError
from llmrl.evaluation import Benchmark, record
from llmrl.problems import validated
from llmrl.recipe_tree import Tree, overlay
from llmrl.tracking.jsonl import append_lines, plain, read_lines, write_lines
from llmrl.types import Group, Prompt, Rollout

KIND = "llmrl/completions@1"


def resume(path: Path, header: Row) -> list[list[Row]]:
    """The rows already in a file of `header`, by prompt, less a prompt that was cut short; the file is made if new.

    header: {'llmrl': the kind, 'setting': {...}, ...}; a file may only be gone on with under the same setting. Each row
    says by `samples` how many rows its prompt has. Raises LlmrlError where the setting differs.
    """
    rows = read_lines(path)
    if not rows:
        write_lines(path, [header])
        return []
    differ = different(rows[0].get("setting"), plain(header["setting"]))
    if differ:
        raise LlmrlError(
            f"{path} was begun with another {', '.join(differ)}. Give this evaluation a folder of its own (--out), or "
            "remove that file."
        )
    found = [list(some) for _, some in itertools.groupby(rows[1:], key=asked)]
    whole = [some for some in found if len(some) == some[0]["samples"]]
    if len(whole) < len(found):
        write_lines(path, [rows[0], *(row for some in whole for row in some)])
    return whole


def asked(row: Row) -> tuple[str, int | None]:
    """What rows of one prompt share; a prompt that a run asked twice in a step is in two groups."""
    return row["prompt_id"], row.get("group")


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """A hold on a folder of results; made if new. LlmrlError when another process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LlmrlError(f"{folder} is in use by another process. Wait for it, or give another --out.") from error
        yield


def different(old: Any, new: dict[str, Any]) -> list[str]:
    """Keys of two settings that do not agree."""
    if not isinstance(old, dict):
        return ["kind of file"]
    return [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]


def append_group(path: Path, group: Group) -> None:
    """Add the answers to one prompt, one line a sample."""
    num = len(group.rollouts)
    rows = [record(group.prompt, one, {}) | {"sample": i, "samples": num} for i, one in enumerate(group.rollouts)]
    append_lines(path, [{k: v for k, v in row.items() if k != "scores"} for row in rows])


def header_of(path: Path) -> Row | None:
    """The first line of a file of completions; None for any other file. LlmrlError where there is no file."""
    if not path.is_file():
        raise LlmrlError(f"no file {path} (looked in {Path.cwd()}). Give a file of completions.")
    if path.suffix != ".jsonl":
        return None
    with path.open("rb") as file:
        row = as_row(file.readline())
    return row if row.get("llmrl") == KIND else None


def read_groups(path: Path, benchmark: Benchmark | None = None, data: dict[str, Any] | None = None) -> Iterator[Group]:
    """The prompts of a file with their answers, in order.

    What an evaluation or a run wrote is read as it stands. Any other file is data with stored answers (prompt and
    completion, messages, chosen and rejected, …; see `llmrl.data.formats`) under the data section `data`, laid over
    the benchmark's; rows that differ in nothing but the answer are siblings. Raises DataError.
    """
    if path.suffix == ".jsonl":
        with path.open("rb") as file:
            first = as_row(file.readline())
        if first.get("llmrl") == KIND or {"prompt_id", "text"} <= set(first):
            if data:
                keys = ", ".join(f"data.{key}" for key in data)
                raise RecipeError(f"{keys}: {path} was written by llmrl and is read as it stands. Leave that out.")
            yield from own_groups(path)
            return
    yield from foreign_groups(path, benchmark, data or {})


def as_row(line: bytes) -> Row:
    """One line as a mapping; empty where it is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def own_groups(path: Path) -> Iterator[Group]:
    """The groups of a file that llmrl wrote, without holding all of it in memory."""
    with path.open("rb") as file:
        rows = (own_row(path, number, line) for number, line in enumerate(file, 1))
        answers = (row for row in rows if row is not None)
        for _, some in itertools.groupby(answers, key=asked):
            yield group_of(list(some))


def own_row(path: Path, number: int, line: bytes) -> Row | None:
    """A stored answer; None for a header, a blank line and a last line that was torn. Raises DataError for another."""
    try:
        row = json.loads(line) if line.strip() else {"llmrl": None}
    except (ValueError, RecursionError) as error:
        if not line.endswith(b"\n"):
            return None
        raise DataError(f"{path}, line {number}: not JSON: {error}. Mend or remove that line.") from error
    if isinstance(row, dict) and "llmrl" in row:
        return None
    wrong = [key for key, fits in OWN_FIELDS.items() if not fits(row.get(key) if isinstance(row, dict) else None)]
    if wrong:
        raise DataError(
            f"{path}, line {number}: no stored answer; {', '.join(wrong)} missing or of another kind than llmrl writes. "
            "Mend or remove that line."
        )
    return row


def are_messages(value: Any) -> bool:
    """Whether it is a list of turns, or nothing."""
    turns = value or []
    return isinstance(turns, list) and all(isinstance(t, dict) and {"role", "content"} <= t.keys() for t in turns)


OWN_FIELDS: dict[str, Callable[[Any], bool]] = {  # of a stored answer, as `llmrl.evaluation.record` writes it
    "prompt_id": lambda value: isinstance(value, str),
    "text": lambda value: isinstance(value, str),
    "prompt": lambda value: isinstance(value, str | None),
    "feedback": lambda value: isinstance(value, str | None),
    "columns": lambda value: isinstance(value, dict | None),
    "ids": lambda value: value is None or (isinstance(value, list) and all(type(one) is int for one in value)),
    "group": lambda value: isinstance(value, int | None),
    "messages": are_messages,
}


def group_of(rows: list[Row]) -> Group:
    """What `llmrl.evaluation.record` made of a group, as that group."""
    row = rows[0]
    messages = row.get("messages")
    prompt = Prompt(
        row["prompt_id"],
        messages=tuple(messages) if messages else None,
        text=None if messages else row.get("prompt", ""),
        reference=row.get("reference"),
        columns=row.get("columns") or {},
        feedback=row.get("feedback"),
    )
    found = (Rollout(tuple(r.get("ids") or ()), r["text"], truncated=bool(r.get("truncated"))) for r in rows)
    return Group(prompt, tuple(found))


def foreign_groups(path: Path, benchmark: Benchmark | None, changes: dict[str, Any]) -> Iterable[Group]:
    """Groups out of data with stored answers."""
    base = {k: v for k, v in (benchmark.data if benchmark else {}).items() if k not in ("subset", "split", "revision")}
    data = validated(Data, overlay(Tree(base), Tree(changes | {"source": str(path)})).values, "data")
    groups: dict[str, Group] = {}
    for number, row in enumerate(read_rows(data, seed=0, adapt=benchmark.adapt if benchmark else None), 1):
        prompt = to_prompt(row, data, number)
        if not prompt.completions:
            raise DataError(
                f"{path}, row {number}: no stored answer among the columns {', '.join(row)}. Map it: "
                "data.columns.completion=COLUMN."
            )
        told = prompt.reference, prompt.columns  # scorers read these, so siblings have them in common
        key = identity({"asked": prompt.messages or prompt.text, "told": told})
        before = groups.get(key, Group(prompt, ()))
        groups[key] = Group(
            before.prompt, (*before.rollouts, *(Rollout((), c.text, stored=c) for c in prompt.completions))
        )
    return groups.values()


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
