"""Rows, as plain dicts, from wherever a recipe's `data.source` points."""

from __future__ import annotations

import itertools
import json
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llmrl import catalog, hub
from llmrl.config import Data
from llmrl.errors import DataError, nearest
from llmrl.options import typed

Row = dict[str, Any]
LOADERS = {".jsonl": None, ".json": "json", ".csv": "csv", ".parquet": "parquet"}  # suffix -> builder of `datasets`
MODULE_ATTRIBUTE = re.compile(r"[\w.]+:[\w.]+")


def read_rows(
    data: Data, *, seed: int, adapt: Callable[[Row], Row | None] | None = None, unreadable: list[str] | None = None
) -> list[Row]:
    """The first `data.limit` rows of the source, or all of them; those that `adapt` makes of them, None for left out.

    A source is, in this order: {name: ..., <options>}, a catalog name or module:attribute (called; it gets the run's
    seed and `data.split` where it has these options and the recipe does not set them); a name that ends in .jsonl,
    .json, .csv or .parquet (a local file, read whole: it has no subsets or splits); a hub id or a folder that
    `datasets` can read. unreadable: takes the reason for each line of a .jsonl file that is not JSON, and for each row that
    is no mapping of columns, which are left out then. Raises DataError when the source fails or gives no rows, and without
    `unreadable` for any such row.
    """
    every = enumerate(_rows(data, seed, unreadable), 1)
    found = (row for number, row in every if _is_row(row, f"{data.source}: row {number}", unreadable))
    if adapt is not None:
        found = (row for row in map(adapt, found) if row is not None)
    rows = list(itertools.islice(found, data.limit))
    if not rows:
        raise DataError(f"{data.source}: no rows, expected at least one. Check data.source, subset and split.")
    return rows


def _is_row(row: Any, place: str, unreadable: list[str] | None) -> bool:
    if isinstance(row, dict):
        return True
    _refuse(DataError(f"{place} is a {type(row).__name__}; expected a mapping of columns."), unreadable)
    return False


def _refuse(error: DataError, unreadable: list[str] | None) -> None:
    if unreadable is None:
        raise error
    unreadable.append(str(error))


def _rows(data: Data, seed: int, unreadable: list[str] | None) -> Iterator[Row]:
    source = data.source
    if isinstance(source, dict):
        return generated(source, split=data.split, seed=seed)
    if source in catalog.table("sources") or MODULE_ATTRIBUTE.fullmatch(source):
        return generated({"name": source}, split=data.split, seed=seed)
    if Path(source).suffix in LOADERS:
        return from_file(Path(source), unreadable)
    return from_hub(data, source)


def generated(named: dict[str, Any], *, split: str, seed: int) -> Iterator[Row]:
    """Rows of a callable source. `named` is {name: ..., <option>: ...}."""
    if "name" not in named:
        raise DataError(f"data.source has no 'name', only {', '.join(named)}; write {{name: ..., <option>: ...}}.")
    make = catalog.get("sources", named["name"])
    known = catalog.options_of(make)
    options = {key: value for key, value in named.items() if key != "name"}
    for key in options:
        if key not in known:
            hint = f"{nearest(key, known)} Options: {', '.join(known)}."
            raise DataError(f"data.source: {key} is not an option of {named['name']}.{hint}")
    defaults = {key: value for key, value in {"seed": seed, "split": split}.items() if key in known}
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in defaults | options:
            raise DataError(f"data.source.{key} is missing: {named['name']} has no default for it.")
        if key in options and (problems := typed(parameter.annotation, options[key], f"data.source.{key}")[1]):
            raise DataError(problems[0])
    return iter(make(**(defaults | options)))


def from_file(path: Path, unreadable: list[str] | None = None) -> Iterator[Row]:
    """Rows of a local file; errors in .jsonl name the line."""
    if not path.is_file():
        raise DataError(f"no file {path} (looked in {Path.cwd()}). Give data.source an existing file, or a hub id.")
    builder = LOADERS[path.suffix]
    return (
        _lines(path, unreadable) if builder is None else _load(str(path), builder, data_files=str(path), split="train")
    )


def from_hub(data: Data, source: str) -> Iterator[Row]:
    """Rows of a data set on the Hugging Face hub, or of a folder that `datasets` reads like one."""
    why, hint = None if Path(source).exists() else hub.silence(), nearest(source, catalog.table("sources"))
    try:
        found = _load(source, source, data.subset, split=data.split, revision=data.revision)
    except DataError as error:
        if why is None or not isinstance(error.__cause__, ConnectionError):
            raise
        raise DataError(
            f"data.source: found no file or folder {source!r} in {Path.cwd()}, and as a hub id it cannot be had: {why}; no copy "
            "of it is stored here. Expected a local .jsonl, .json, .csv or .parquet file, a catalog source, or a hub id that "
            f"can be reached. Copy the data here and name the file, or connect; HF_ENDPOINT names a mirror.{hint}"
        ) from error
    if why is not None:
        warnings.warn(f"{why}; {source} is taken from what is stored here", stacklevel=2)
    return found


def _lines(path: Path, unreadable: list[str] | None) -> Iterator[Row]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                problem = DataError(f"{path}, line {number}: not JSON in UTF-8: {error}. Expected one object a line.")
                problem.__cause__ = error
                _refuse(problem, unreadable)


def _load(shown: str, *arguments: Any, **options: Any) -> Iterator[Row]:
    import datasets

    try:
        return iter(datasets.load_dataset(*arguments, **options))
    except Exception as error:  # every builder and every transport has its own kinds
        tried = ", ".join(f"{key} {value}" for key, value in options.items() if value is not None)
        hint = nearest(shown, catalog.table("sources"))
        raise DataError(
            f"cannot load {shown} ({tried}) with `datasets`: {type(error).__name__}: {error}. Check the name and the "
            f"network; data.source may also be a local .jsonl, .json, .csv or .parquet file or a catalog source.{hint}"
        ) from error
