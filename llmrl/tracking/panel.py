"""What is seen while a run goes on: a live panel on a terminal, plain lines anywhere else, or nothing."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any, Literal, Protocol, TextIO

from llmrl.redaction import redact
from llmrl.tracking.text import number, percent, plain_text

Row = dict[str, Any]

SHOWN: dict[str, tuple[str, Callable[[float], str]]] = {  # in this order, where a row has them
    "reward/mean": ("reward", number),
    "loss/total": ("loss", number),
    "policy/entropy": ("entropy", number),
    "rollout/length": ("length", number),
    "rollout/truncated": ("truncated", percent),
    "rollout/no_spread": ("no spread", percent),
    "rollout/logprob_gap_mean": ("log-prob gap", number),
    "gradient/norm": ("gradient", number),
}


class Panel(Protocol):
    """Fed by the loop: a stage begins, a metrics row is there, something is to be said, the run ends."""

    def stage(self, name: str, steps: int) -> None:
        """A stage of that many steps begins, or goes on after a resume."""

    def step(self, row: Row, sample: str | None = None) -> None:
        """A metrics row as it goes to metrics.jsonl, a measurement included; `sample` is one rollout's text."""

    def message(self, text: str) -> None:
        """One line to keep on the screen."""

    def close(self) -> None:
        """Leave the terminal as it was; may be called twice."""


def make_panel(mode: Literal["auto", "plain", "off"], total_steps_by_stage: dict[str, int]) -> Panel:
    """The panel that fits where standard output goes. 'auto' is live on a terminal, unless NO_COLOR is set."""
    if mode == "off":
        return Silent()
    live = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    if mode == "plain" or not live:
        return Plain(total_steps_by_stage)
    from llmrl.tracking.live import Live

    return Live(total_steps_by_stage)


class Silent:
    """Shows nothing."""

    def stage(self, name: str, steps: int) -> None: ...

    def step(self, row: Row, sample: str | None = None) -> None: ...

    def message(self, text: str) -> None: ...

    def close(self) -> None: ...


class Plain:
    """A line for every measurement; of the other steps the first, the last, about 20 between, and one in 10 seconds."""

    def __init__(self, total_steps_by_stage: dict[str, int], stream: TextIO | None = None):
        self.stream = sys.stdout if stream is None else stream
        self.totals = dict(total_steps_by_stage)
        self.name = ""
        self.printed = time.monotonic()

    def stage(self, name: str, steps: int) -> None:
        self.totals[name] = steps
        self.message(f"stage {name}: {steps:,} steps")
        self.name = name

    def step(self, row: Row, sample: str | None = None) -> None:
        step, total = row["step"], self.totals[self.name]
        head = f"{self.name} {step:>{len(str(total))}}/{total}"
        for name, result in measurements(row).items():
            self.message(f"{head}  {name}: {result}")
        values = [f"{label} {show(row[key])}" for key, (label, show) in SHOWN.items() if row.get(key) is not None]
        due = step in (1, total) or step % max(1, total // 20) == 0 or time.monotonic() - self.printed >= 10
        if values and due:
            seconds = row.get("time/step")
            self.message("  ".join([head, *values, *([f"{number(seconds)} s"] if seconds is not None else [])]))

    def message(self, text: str) -> None:
        self.printed = time.monotonic()
        encoding = self.stream.encoding or "utf-8"
        try:
            print(plain_text(redact(text)).encode(encoding, "replace").decode(encoding), file=self.stream, flush=True)
        except OSError:
            pass  # the terminal or pipe is gone; the run goes on

    def close(self) -> None: ...


def measurements(row: Row) -> dict[str, str]:
    """{evaluation: 'accuracy 88.3 % (84.1 to 91.5)'} of a metrics row."""
    found = {}
    for key, value in row.items():
        kind, _, rest = key.partition("/")
        name, _, metric = rest.rpartition("/")
        if kind == "eval" and metric == "accuracy" and value is not None:
            low, high = row.get(f"eval/{name}/low"), row.get(f"eval/{name}/high")
            interval = f" ({100 * low:.1f} to {100 * high:.1f})" if low is not None and high is not None else ""
            found[name] = f"accuracy {percent(value)}{interval}"
    return found
