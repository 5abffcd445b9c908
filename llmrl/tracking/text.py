"""Text for people: what a model wrote without its control characters, numbers and times in few digits."""

from __future__ import annotations

import re
from typing import Any, TypeGuard

ESCAPES = re.compile(
    r"(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x90\x98\x9c-\x9f]*(?:\x07|\x1b\\|\x9c)"  # OSC, DCS, SOS, PM, APC
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor moves
    r"|\x1b[ -/]*[0-~]?"  # every other escape
)
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
LARGEST = 1e100
BLOCKS = "▁▂▃▄▅▆▇"  # a full block would run into the line above


def plain_text(text: str) -> str:
    """The text without terminal escapes, C0 and C1 controls and direction marks; newline and tab stay.

    Square brackets stay too: print it as a rich `Text`, which reads no markup.
    """
    return CONTROLS.sub("", ESCAPES.sub("", text.replace("\r\n", "\n")))


def one_line(text: str, width: int) -> str:
    """The text on one line of at most `width` characters, its middle left out when it is too long."""
    line = " ".join(plain_text(text).split())
    if len(line) <= width:
        return line
    head = (width - 3) // 2
    return f"{line[:head]} … {line[len(line) - (width - 3 - head) :]}"


def is_number(value: Any) -> TypeGuard[float]:
    """Whether the value of a record is a number that can be drawn: not None, not a flag, not beyond LARGEST."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST < value < LARGEST


def number(value: float) -> str:
    """About three digits: 0.412, 18.4, 12,400, 1.2e-05."""
    if value == 0 or 1e-3 <= abs(value) < 999.5:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.1e}"


def percent(value: float) -> str:
    """A share as a percentage with one digit: 41.4 %."""
    return f"{100 * value:.1f} %"


def duration(seconds: float) -> str:
    """'31 s', '4 min 12 s', '1 h 03 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def sparkline(values: list[float], width: int) -> str:
    """Bars of seven heights for means over equal parts of `values`; at most `width` characters."""
    num = min(max(width, 1), len(values))
    edges = [i * len(values) // num for i in range(num + 1)] if num else []
    means = [sum(values[a:b]) / (b - a) for a, b in zip(edges, edges[1:], strict=False)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((mean - low) * scale)] for mean in means)
