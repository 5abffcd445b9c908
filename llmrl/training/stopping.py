"""SIGTERM and Ctrl-C: what is done is kept, the rest is left, and the process is gone within its grace."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

ENDED = 143  # exit status of a process that SIGTERM has ended


class Stop(BaseException):
    """The run was asked to end. No library may take it for an error of its own."""

    def __init__(self, number: int):
        self.name = signal.Signals(number).name
        super().__init__(self.name)


class Stopping:
    """A context in which SIGTERM and the first Ctrl-C raise Stop, at once or where `release` allows it.

    A second Ctrl-C raises KeyboardInterrupt at once. grace: seconds from SIGTERM to the end of the process, whatever it is
    doing then. always_hold: for several processes, which can only stop together. Outside the main thread nothing is caught.
    """

    def __init__(self, grace: float, always_hold: bool = False):
        self.grace, self.always_hold = grace, always_hold
        self.asked: int | None = None
        self.held = always_hold
        self.before: dict[int, Any] = {}
        self.end: threading.Timer | None = None

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            self.before = {n: signal.signal(n, self.receive) for n in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.end is not None:
            self.end.cancel()

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        if self.asked is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.asked = number
        again = "; Ctrl-C again ends it at once" if number == signal.SIGINT else f", within {self.grace:g} s"
        say(f"{signal.Signals(number).name}: keeping what is done, then ending{again}.")
        if number == signal.SIGTERM:
            self.end = threading.Timer(self.grace, os._exit, [ENDED])
            self.end.daemon = True
            self.end.start()
        if not self.held:
            raise Stop(number)

    def hold(self) -> None:
        """From here on the state is between two steps; Stop waits for `release`."""
        self.held = True

    def release(self, asked: bool | None = None) -> None:
        """The state is whole again. asked: whether any process was asked to stop."""
        self.held = self.always_hold
        if (self.asked is not None) if asked is None else asked:
            raise Stop(self.asked or signal.SIGTERM)


def say(text: str) -> None:
    """Straight to the terminal: a handler may have interrupted whoever else is printing."""
    try:
        os.write(2, f"\nllmrl: {text}\n".encode())
    except OSError:
        pass
