"""JSON lines that survive a kill: appended whole or not at all, files replaced in one move, always valid JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmrl.durable import write
from llmrl.errors import LlmrlError
from llmrl.redaction import exact


def plain(value: Any) -> Any:
    """The value as JSON can hold it: NaN and infinities become None, arrays lists, anything unknown its text."""
    if hasattr(value, "tolist"):  # tensors and numpy values, without importing either
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return str(value)


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Add one row and flush it. What a killed writer left after the last whole line is removed first."""
    append_lines(path, [row])


def append_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Add rows in one write, as `append_line` does."""
    with open(path, "a+b") as file:
        end = file.tell()
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write(b"".join(json.dumps(exact(plain(row))).encode() + b"\n" for row in rows))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Every whole row of the file, none if there is no file. A torn last line is passed over.

    Raises LlmrlError for a line before the end that is not a JSON object.
    """
    if not path.exists():
        return []
    whole = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline was torn, or is empty
    rows = []
    for number, line in enumerate(whole, 1):
        try:
            row = json.loads(line, parse_constant=lambda _: None)  # NaN and infinities, as in `plain`
        except (ValueError, RecursionError) as error:
            raise LlmrlError(f"{path}: line {number} is not JSON ({error}). Remove that line and try again.") from error
        if not isinstance(row, dict):
            raise LlmrlError(f"{path}: line {number} is not a JSON object. Remove that line and try again.")
        rows.append(row)
    return rows


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Replace the file by these rows; a reader sees the old file or the new one, never a part."""
    write_text(path, "".join(json.dumps(exact(plain(row))) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """Replace the file by this text, without this process's secrets, as `llmrl.durable.write` does."""
    write(path, exact(text).encode("utf-8", "replace"))
