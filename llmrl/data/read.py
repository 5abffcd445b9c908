"""Rows, as plain dicts, from wherever a recipe's `data.source` points."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llmrl import catalog
from llmrl.config import Data
from llmrl.errors import DataError, nearest
from llmrl.options import typed

Row = dict[str, Any]
LOADERS = {".jsonl": None, ".json": "json", ".csv": "csv", ".parquet": "parquet"}  # suffix -> builder of `datasets`
MODULE_ATTRIBUTE = re.compile(r"[\w.]+:[\w.]+")


def read_rows(data: Data, *, seed: int, adapt: Callable[[Row], Row | None] | None = None) -> list[Row]:
    """The first `data.limit` rows of the source, or all of them; those that `adapt` makes of them, None for left out.

    A source is, in this order: {name: ..., <options>}, a catalog name or module:attribute (called; it gets the run's
    seed and `data.split` where it has these options and the recipe does not set them); a name that ends in .jsonl,
    .json, .csv or .parquet (a local file, read whole: it has no subsets or splits); a hub id or a folder that
    `datasets` can read. Raises DataError when that fails or gives no rows.
    """
    found = _rows(data, seed)
    if adapt is not None:
        found = (row for row in map(adapt, found) if row is not None)
    rows = list(itertools.islice(found, data.limit))
    if not rows:
        raise DataError(f"{data.source}: no rows, expected at least one. Check data.source, subset and split.")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(f"{data.source}: row {number} is a {type(row).__name__}; expected a mapping of columns.")
    return rows


def _rows(data: Data, seed: int) -> Iterator[Row]:
    source = data.source
    if isinstance(source, dict):
        return generated(source, split=data.split, seed=seed)
    if source in catalog.table("sources") or MODULE_ATTRIBUTE.fullmatch(source):
        return generated({"name": source}, split=data.split, seed=seed)
    if Path(source).suffix in LOADERS:
        return from_file(Path(source))
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


def from_file(path: Path) -> Iterator[Row]:
    """Rows of a local file; errors in .jsonl name the line."""
    if not path.is_file():
        raise DataError(f"no file {path} (looked in {Path.cwd()}). Give data.source an existing file, or a hub id.")
    builder = LOADERS[path.suffix]
    return _lines(path) if builder is None else _load(str(path), builder, data_files=str(path), split="train")


def from_hub(data: Data, source: str) -> Iterator[Row]:
    """Rows of a data set on the Hugging Face hub, or of a folder that `datasets` reads like one."""
    return _load(source, source, data.subset, split=data.split, revision=data.revision)


def _lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except ValueError as error:
                raise DataError(
                    f"{path}, line {number}: not JSON in UTF-8: {error}. Expected one object a line."
                ) from error


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
