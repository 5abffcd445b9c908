"""The columns of a row: our names on theirs, templates filled from them, the row's identity."""

from __future__ import annotations

import hashlib
import json
import re

from llmrl.data.read import Row
from llmrl.errors import DataError, nearest

FIELDS = ["prompt", "completion", "messages", "text", "chosen", "rejected", "margin", "feedback", "score", "steps"]
FIELDS += ["completions", "labels", "reference"]
REFERENCES = ["reference", "answer", "ground_truth"]
PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]+)\}")


def identity(row: Row) -> str:
    """The first 16 hex digits of the SHA-256 of the row as canonical JSON."""
    text = json.dumps(row, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def mapped(row: Row, columns: dict[str, str]) -> Row:
    """The row under our names; `columns` is our name → theirs. DataError where either of the two does not exist."""
    for ours, theirs in columns.items():
        if ours not in FIELDS:
            raise DataError(f"data.columns: {ours} is no field.{nearest(ours, FIELDS)} Fields: {', '.join(FIELDS)}.")
        if theirs not in row:
            raise DataError(f"data.columns: no column {theirs!r}.{nearest(theirs, row)} Columns: {', '.join(row)}.")
    rest = {key: value for key, value in row.items() if key not in columns.values()}
    return rest | {ours: row[theirs] for ours, theirs in columns.items()}


def reference_column(row: Row, columns: dict[str, str], used: set[str]) -> str | None:
    """The column that scorers compare with: the mapped one, else the first usual name that is not `used` already."""
    if "reference" in columns:
        return columns["reference"]
    return next((name for name in REFERENCES if name in row and name not in used), None)


def fill(template: str, row: Row) -> str:
    """The template with every {column} replaced; {{ and }} are braces. Braces inside of values mean nothing.

    Raises DataError for a column that is missing or holds neither text nor a number.
    """

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name is None:
            return match.group()[0]
        if not isinstance(row.get(name), str | int | float):
            found = f"is a {type(row[name]).__name__}, not text or a number" if name in row else "is not there"
            raise DataError(f"template {template!r}: column {name!r} {found}. Columns: {', '.join(row)}.")
        return str(row[name])

    return PLACEHOLDER.sub(value, template)
