"""What one call of a scorer may cost and do. Light to import: the processes that scorers run in read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Limits:
    """seconds: wall time of one call; None: the recipe's scoring.timeout. memory_gb: private memory that the process may
    take beyond its imports; None: no limit. workers: processes at most; None: the recipe's scoring.workers. confined: the
    process may neither open sockets, nor write files, nor start programs. preload: modules imported once, before the
    processes are forked.
    """

    seconds: float | None = None
    memory_gb: float | None = 4.0
    workers: int | None = None
    confined: bool = False
    preload: tuple[str, ...] = ()


DEFAULT = Limits()


def limits(**fields: Any) -> Callable[[Callable], Callable]:
    """Decorator: gives a scorer its own `Limits`."""

    def mark(function: Callable) -> Callable:
        function.limits = Limits(**fields)
        return function

    return mark
