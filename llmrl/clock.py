"""Where the time of a step goes: the parts of a step, and further parts inside of them while somebody watches."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

Watcher = Callable[[str], AbstractContextManager]

_watchers: list[Watcher] = []


def span(name: str) -> AbstractContextManager:
    """What is done inside counts as `name`, within the span that is open, for a profile; free when nobody watches."""
    return _watchers[-1](name) if _watchers else nullcontext()


@contextlib.contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Inside, every span of this process is opened through `watcher`."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


@dataclass
class Clock:
    """Seconds spent in each part of a step."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        with span(name):
            yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
