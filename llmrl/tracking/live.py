"""The live panel: where the run is, how it is doing, what a step's time goes into."""

from __future__ import annotations

import statistics
import time
from typing import Any

from rich import box, live
from rich.console import Console, Group, RenderableType
from rich.panel import Panel as Box
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from llmrl.redaction import exact, redact
from llmrl.tracking.panel import SHOWN, Row, measurements
from llmrl.tracking.text import duration, number, one_line, plain_text, sparkline

PARTS = {
    "generate": "blue",
    "score": "yellow",
    "passes": "cyan",
    "update": "green",
    "sync": "magenta",
    "evaluate": "white",
}


class Live:
    """Draws itself twice a second from the last row; what is printed meanwhile scrolls above it."""

    def __init__(self, total_steps_by_stage: dict[str, int], console: Console | None = None):
        self.totals = dict(total_steps_by_stage)
        self.name = ""
        self.row: Row = {}
        self.results: dict[str, tuple[str, str]] = {}  # evaluation: first and last result
        self.history: dict[str, list[float]] = {}
        self.seconds: list[float] = []
        self.sample: str | None = None
        self.started = self.stepped = time.monotonic()
        self.live = live.Live(console=console or Console(), get_renderable=self.render, refresh_per_second=2)

    def stage(self, name: str, steps: int) -> None:
        self.totals[name] = steps
        self.name, self.row, self.history, self.seconds, self.sample = name, {}, {}, [], None
        self.stepped = time.monotonic()
        self.live.start()

    def step(self, row: Row, sample: str | None = None) -> None:
        for name, result in measurements(row).items():
            first, _ = self.results.get(name, (result, result))
            self.results = {**self.results, name: (first, result)}
        new = {key: [*self.history.get(key, []), row[key]] for key in SHOWN if row.get(key) is not None}
        if new:
            now = time.monotonic()
            self.seconds, self.stepped = [*self.seconds[-19:], now - self.stepped], now
            self.history = {**self.history, **new}  # a new object: the drawing thread may be reading the old one
        self.row = row if new else {**self.row, **row}  # a measurement adds to the step that it came after
        self.sample = exact(sample) or self.sample

    def message(self, text: str) -> None:
        self.live.console.print(Text(plain_text(redact(text))))

    def close(self) -> None:
        self.live.stop()

    def render(self) -> RenderableType:
        """The panel as it stands now."""
        parts: list[RenderableType] = [self._progress()]
        parts += [Text(), _numbers(self.history, min(24, (self.live.console.width - 54) // 2))] if self.history else []
        parts += [Text(), _results(self.results)] if self.results else []
        times = {part: self.row.get(f"time/{part}") or 0.0 for part in PARTS}
        parts += [Text(), *_times(times)] if any(times.values()) else []
        if self.sample:
            parts += [Text(), Text.assemble(("sample  ", "dim"), one_line(self.sample, self.live.console.width - 14))]
        return Box(
            Group(*parts), title=self._stages(), title_align="left", box=box.ROUNDED, border_style="dim", padding=(0, 1)
        )

    def _stages(self) -> Text:
        names = list(self.totals)
        place = names.index(self.name) if self.name in names else -1
        marks = [
            ("✓ ", "green") if i < place else ("● ", "blue") if i == place else ("○ ", "dim") for i in range(len(names))
        ]
        pieces: list[Any] = []
        for i, (name, mark) in enumerate(zip(names, marks, strict=True)):
            pieces += [("  →  ", "dim")] * (i > 0) + [mark, (plain_text(name), "bold" if i == place else "dim")]
        return Text.assemble(*pieces)

    def _progress(self) -> Table:
        done, total = self.row.get("step", 0), self.totals.get(self.name, 0)
        left = duration(statistics.fmean(self.seconds) * (total - done)) if self.seconds else "…"
        grid = Table.grid(padding=(0, 2), expand=True)
        grid.add_column(no_wrap=True)
        grid.add_column(ratio=1)
        grid.add_column(no_wrap=True)
        elapsed = duration(time.monotonic() - self.started)
        times = Text.assemble((elapsed, "bold"), ("  left in stage ", "dim"), (left, "bold"))
        grid.add_row(
            f"{done:,} / {total:,}", ProgressBar(total=max(total, 1), completed=done, complete_style="cyan"), times
        )
        return grid


def _numbers(history: dict[str, list[float]], width: int) -> Table:
    grid = Table.grid(padding=(0, 2), expand=True)
    for _ in range(2):
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(justify="right", no_wrap=True, min_width=8)
        grid.add_column(style="cyan", no_wrap=True, ratio=1)
    cells = []
    for key, values in history.items():
        label, show = SHOWN[key]
        cells.append((label, Text(show(values[-1]), "bold"), sparkline(values, width)))
    for left, right in zip(cells[::2], [*cells[1::2], ("", "", "")], strict=False):
        grid.add_row(*left, *right)
    return grid


def _results(results: dict[str, tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    for name, (first, last) in results.items():
        change = Text().append(first.removeprefix("accuracy "), "dim")
        if last != first:
            change.append("  →  ").append(last.removeprefix("accuracy "), "bold")
        grid.add_row(Text(plain_text(name), "dim"), change)
    return grid


def _times(times: dict[str, float]) -> list[RenderableType]:
    total = sum(times.values())
    bar = Table.grid(expand=True)
    legend = Text()
    cells = []
    for part, seconds in times.items():
        if seconds > 0:
            bar.add_column(ratio=max(1, round(1000 * seconds / total)))
            cells.append(ProgressBar(total=1, completed=1, complete_style=PARTS[part], finished_style=PARTS[part]))
            legend.append("■\u00a0", PARTS[part]).append(f"{part}\u00a0", "dim").append(f"{number(seconds)}\u00a0s   ")
    bar.add_row(*cells)
    return [bar, legend]
