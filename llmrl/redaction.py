"""Secrets taken out of what a run writes, prints and raises. The one place that knows what a secret looks like."""

from __future__ import annotations

import functools
import html
import json
import os
import re
from collections.abc import Callable
from typing import Any, TextIO
from urllib.parse import quote, unquote, urlsplit

HIDDEN = "[redacted]"
SHORTEST = 8  # characters; a shorter value stands in ordinary words and numbers
# names of environment variables that hold a secret, and the endings of those that only speak of one
TELLING = re.compile(
    r"secret|token|passw(?:or)?d|passphrase|credential|authorization|cookie|webhook|(?:^|_)(?:pass|pat|dsn)(?:_|$)"
    r"|(?:^|_|api|access|private)keys?(?:_|$)",
    re.I,
)
HARMLESS = re.compile(r"(?:path|file|dir|home|sock|type|name|header|env|parallelism)$", re.I)
# keys of a recipe whose literal value is a secret; stop_token and the like are none
SECRET_KEY = re.compile(
    r"(?:^|[_-])(?:(?:api|access|private|secret)[_-]?key|secret|password|passwd|passphrase|credentials?|authorization"
    r"|cookie)$|^(?:(?:hub|hf|api|access|auth|bearer|wandb)[_-]?)?token$",
    re.I,
)
SHAPES = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"hf_[A-Za-z0-9]{16,}|sk-(?=[\w-]*\d)[\w-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
    r"|xox[abeoprs]-[\w-]{10,}|(?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Z])|AIza[\w-]{30,}|npm_[A-Za-z0-9]{30,}"
    r"|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*)"
    r"|(?<=://)[^\s/?#'\"<>]+(?=@)"  # user and password of an address
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----(?:(?!-----END).)*(?:-----END [A-Z ]*PRIVATE KEY-----)?",
    re.S,
)
BEARER = re.compile(r"(\bbearer\s+)(?=[\w.~+/=-]*\d)[\w.~+/=-]{8,}", re.I)
NAMED = re.compile(  # password=..., 'X-Api-Key': '...', Authorization: Basic ..., ?access_token=...
    r"((?:api[_-]?key|access[_-]?key|private[_-]?key|secret[_-]?key|(?:api|auth|access|hub|hf)[_-]?token|password|passwd"
    r"|client[_-]?secret|authorization)[\"']?\s*[:=]\s*[\"']?(?:(?:basic|bearer|token)\s+)?)(?!\[redacted)[^\s\"'&,;)}\]]{6,}",
    re.I,
)


def exact(data: Any) -> Any:
    """The text, or plain data with every text in it, without the values of this process's secret variables.

    For what models and data sets wrote: what merely looks like a secret stays.
    """
    pattern = _values(_known())
    return data if pattern is None else _everywhere(data, lambda text: pattern.sub(HIDDEN, text))


def redact(data: Any) -> Any:
    """As `exact`, and without anything that has the shape of a secret: for messages, logs and settings."""
    return _everywhere(exact(data), _shapeless)


def secret_in(text: str) -> bool:
    """Whether a value of a recipe holds a secret: one of this process's, or something of a secret's shape."""
    pattern = _values(_known())
    return bool(SHAPES.search(text) or BEARER.search(text) or (pattern and pattern.search(text)))


class Guarded:
    """A text stream that everything is redacted on its way to; a secret in two writes is not seen."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(redact(text))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _shapeless(text: str) -> str:
    text = BEARER.sub(rf"\1{HIDDEN}", SHAPES.sub(HIDDEN, text))
    return NAMED.sub(rf"\1{HIDDEN}", text)


def _everywhere(data: Any, change: Callable[[str], str]) -> Any:
    if isinstance(data, str):
        return change(data)
    if isinstance(data, dict):
        return {_everywhere(key, change): _everywhere(value, change) for key, value in data.items()}
    if isinstance(data, list | tuple):
        changed = [_everywhere(value, change) for value in data]
        return tuple(changed) if isinstance(data, tuple) else changed
    return data


def _known() -> tuple[str, ...]:
    """Values of variables that are named for a secret, and passwords in addresses that other variables hold."""
    return _secrets(tuple(os.environ.items()))


@functools.lru_cache(maxsize=4)
def _secrets(variables: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    found = set()
    for name, value in variables:
        if TELLING.search(name) and not HARMLESS.search(name):
            found.add(value.strip())
        elif "://" in value and "@" in value:
            try:
                password = urlsplit(value).password or ""
            except ValueError:
                continue
            found |= {password, unquote(password)}
    return tuple(sorted(value for value in found if len(value) >= SHORTEST and not _is_number(value)))


@functools.lru_cache(maxsize=4)
def _values(known: tuple[str, ...]) -> re.Pattern[str] | None:
    """What finds the values as they are, and as JSON, HTML, an address or Python would write them."""
    written = {
        form
        for value in known
        for form in (
            value,
            json.dumps(value)[1:-1],
            json.dumps(value, ensure_ascii=False)[1:-1],
            html.escape(value),
            quote(value, safe=""),
            repr(value)[1:-1],
        )
    }
    return re.compile("|".join(map(re.escape, sorted(written, key=len, reverse=True)))) if written else None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
