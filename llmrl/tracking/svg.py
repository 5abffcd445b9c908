"""Charts as inline SVG text: lines with their spread, stacked areas, intervals. Colours are the page's classes c0 … c6.

Every stage of a run has an equal part of the width and its own scale of steps, since 2,000 warm-up steps beside 60
others would leave nothing to see of those.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from llmrl.tracking.text import number, percent, plain_text

WIDTH, HEIGHT = 370, 206
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 28, 34
NUM_COLOURS = 7
TINIEST = 1e-300  # numbers below it have no halves and no ends on either side
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MAX_POINTS = 300  # a stage; more steps are drawn as means over equal parts, with the range around them


class Stage(NamedTuple):
    name: str
    steps: int


class Point(NamedTuple):
    """A value at a step of a stage, `low` to `high` its interval or range; `first` to `step` are the steps it is of."""

    stage: int
    step: int
    value: float
    low: float
    high: float
    first: int


class Series(NamedTuple):
    name: str
    points: list[Point]


class Chart(NamedTuple):
    """The drawing, and what the page's script shows under the pointer: plain data."""

    svg: str
    hover: dict[str, Any]


def thin(points: Sequence[Point], stages: Sequence[Stage]) -> list[Point]:
    """At most about MAX_POINTS a stage: the mean of equal parts, with low and high the least and the greatest."""
    parts: dict[tuple[int, int], list[Point]] = {}
    for point in points:
        size = math.ceil(stages[point.stage].steps / MAX_POINTS) or 1
        parts.setdefault((point.stage, -(-point.step // size)), []).append(point)
    return [
        Point(
            stage,
            part[-1].step,
            sum(p.value for p in part) / len(part),
            min(p.low for p in part),
            max(p.high for p in part),
            part[0].first,
        )
        for (stage, _), part in parts.items()
    ]


def smooth(points: Sequence[Point]) -> list[Point]:
    """Each value as the mean of its neighbours in the stage, a twentieth of its points wide, less towards the ends."""
    smoothed = []
    for stage in sorted({p.stage for p in points}):
        own = [p for p in points if p.stage == stage]
        for i, point in enumerate(own):
            reach = min(len(own) // 40, i, len(own) - 1 - i)
            near = own[i - reach : i + reach + 1]
            smoothed.append(point._replace(value=sum(p.value for p in near) / len(near)))
    return smoothed


def lines(
    series: Sequence[Series],
    stages: Sequence[Stage],
    *,
    label: str,
    share: bool = False,
    limits: tuple[float, float] | None = None,
    logarithmic: bool = False,
    measured: bool = False,
) -> Chart:
    """A curve for each series. `measured`: few points with intervals, drawn with whiskers and not smoothed.

    share: values are shown as percentages. limits: of the vertical axis, instead of those of the values.
    logarithmic: values must be above 0.
    """
    values = [v for s in series for p in s.points for v in (p.low, p.high)]
    axis = Axis.logarithmic(values) if logarithmic else Axis.linear(*(limits or (min(values), max(values))))
    drawn, heights = [], []
    for i, one in enumerate(series):
        curve = one.points if measured else smooth(one.points)
        segments = [[p for p in curve if p.stage == stage] for stage in range(len(stages))]
        for segment in filter(None, segments):
            xs = [place(p, stages) for p in segment]
            low, high = ([(x, axis.y(v)) for x, v in zip(xs, side, strict=True)] for side in _sides(segment))
            line = path([(x, axis.y(p.value)) for x, p in zip(xs, segment, strict=True)])
            if measured:
                whiskers = "".join(f"M{a[0]:.1f} {a[1]:.1f}V{b[1]:.1f}" for a, b in zip(low, high, strict=True))
                dots = "".join(
                    f'<circle cx="{x:.1f}" cy="{axis.y(p.value):.1f}" r="3"/>' for x, p in zip(xs, segment, strict=True)
                )
                drawn.append(f'<g class="c{i % NUM_COLOURS}"><path class="band" d="{path(low + high[::-1])}Z"/>')
                drawn.append(f'<path class="whisker" d="{whiskers}"/><path class="line" d="{line}"/>{dots}</g>')
            else:
                outline = path(low) if low == high else path(low + high[::-1]) + "Z"
                kind = "raw" if low == high else "range"
                drawn.append(f'<g class="c{i % NUM_COLOURS}"><path class="{kind}" d="{outline}"/>')
                drawn.append(f'<path class="line" d="{line}"/></g>')
        heights.append({(p.stage, p.step): axis.y(p.value) for p in one.points})
    return _chart(series, stages, axis, drawn, heights, label, share)


def stacked(series: Sequence[Series], stages: Sequence[Stage], *, label: str) -> Chart:
    """Areas one upon the other; a series counts as 0 where it has no value."""
    places = sorted({(p.stage, p.step) for s in series for p in s.points})
    points = {(p.stage, p.step): p for s in series for p in s.points}
    floor = dict.fromkeys(places, 0.0)
    levels = []
    for one in series:
        own = {(p.stage, p.step): p.value for p in one.points}
        top = {at: floor[at] + own.get(at, 0.0) for at in places}
        levels.append((floor, top))
        floor = top
    axis = Axis.linear(0.0, max(floor.values()))
    drawn, heights = [], []
    for i, (low, high) in enumerate(levels):
        for stage in range(len(stages)):
            own_places = [at for at in places if at[0] == stage]
            edge = [(place(points[at], stages), axis.y(high[at])) for at in own_places]
            back = [(place(points[at], stages), axis.y(low[at])) for at in reversed(own_places)]
            if edge:
                drawn.append(f'<g class="c{i % NUM_COLOURS}"><path class="area" d="{path(edge + back)}Z"/></g>')
        heights.append({at: axis.y(high[at]) for at in places})
    return _chart(series, stages, axis, drawn, heights, label, share=False)


def intervals(rows: Sequence[tuple[str, float, float | None, float | None]]) -> str:
    """Shares (name, value, low, high) on one axis from 0 to 100 %, a line each."""
    width, left, line = 440, 108, 26
    height = line * len(rows) + 24

    def x(share: float) -> float:
        return left + share * (width - left - 12)

    drawn = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        drawn.append(f'<path class="grid" d="M{x(tick):.1f} 4V{height - 20}"/>')
        drawn.append(f'<text x="{x(tick):.1f}" y="{height - 6}" text-anchor="middle">{tick:.0%}</text>')
    for i, (name, value, low, high) in enumerate(rows):
        y = line * i + 17
        tone = "c0" if i == len(rows) - 1 else "before"
        drawn.append(
            f'<text class="name" x="{left - 12}" y="{y + 4}" text-anchor="end">{escape(_short(name, 16))}</text>'
        )
        if low is not None and high is not None:
            drawn.append(f'<g class="{tone}"><path class="interval" d="M{x(low):.1f} {y}H{x(high):.1f}"/></g>')
        drawn.append(f'<g class="{tone}"><circle cx="{x(value):.1f}" cy="{y}" r="5"/></g>')
    return (
        f'<svg viewBox="0 0 {width} {height}" class="intervals" role="img" aria-label="accuracy">{"".join(drawn)}</svg>'
    )


class Axis(NamedTuple):
    """The vertical axis: from a value to a place, and its ticks."""

    low: float
    high: float
    ticks: list[float]
    log: bool = False

    @classmethod
    def linear(cls, low: float, high: float) -> Axis:
        """Ends on round numbers; contains 0 where that costs little room."""
        if 0 < low < 0.5 * high:
            low = 0.0
        if high - low < 1e-9 * max(abs(low), abs(high), 1e-9):
            low, high = (low - abs(low) / 2, high + abs(high) / 2) if abs(low) > TINIEST else (0.0, 1.0)
        step = round_step((high - low) / 5)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        return cls(first * step, last * step, [i * step for i in range(first, last + 1)])

    @classmethod
    def logarithmic(cls, values: Sequence[float]) -> Axis:
        """From one power of ten to another."""
        first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        last = max(last, first + 1)
        every = math.ceil((last - first) / 5)
        return cls(first, last, [10.0**i for i in range(first, last + 1, every)], log=True)

    def y(self, value: float) -> float:
        at = (math.log10(value) if self.log else value) - self.low
        return round(HEIGHT - BOTTOM - at / (self.high - self.low) * (HEIGHT - TOP - BOTTOM), 1)


def round_step(size: float) -> float:
    """The least of 1, 2, 2.5, 5 times a power of ten that is not below `size`."""
    power = 10.0 ** math.floor(math.log10(size))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= size * (1 - 1e-9))


def place(point: Point, stages: Sequence[Stage]) -> float:
    """Where a point's step is, from left to right."""
    inner = (WIDTH - LEFT - RIGHT) / len(stages)
    return round(LEFT + inner * (point.stage + point.step / max(stages[point.stage].steps, 1)), 1)


def path(points: Sequence[tuple[float, float]]) -> str:
    """A line through the points, as an SVG path."""
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points)


def _sides(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [p.low for p in points], [p.high for p in points]


def _chart(
    series: Sequence[Series],
    stages: Sequence[Stage],
    axis: Axis,
    drawn: list[str],
    heights: list[dict[tuple[int, int], float]],
    label: str,
    share: bool,
) -> Chart:
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" class="chart" role="img" aria-label="{escape(label)}">'
    svg += (
        _frame(stages, axis, label, share)
        + "".join(drawn)
        + f'<path class="cursor" d="M0 {TOP}V{HEIGHT - BOTTOM}"/></svg>'
    )
    points = {(p.stage, p.step): p for s in series for p in s.points}
    order = sorted(points)
    own = [{(p.stage, p.step): p for p in s.points} for s in series]
    hover = {
        "x": [place(points[at], stages) for at in order],
        "at": [_steps(points[at], stages) for at in order],
        "series": [
            {
                "name": one.name,
                "y": [height.get(at) for at in order],
                "text": [_value(values.get(at), share) for at in order],
            }
            for one, values, height in zip(series, own, heights, strict=True)
        ],
    }
    return Chart(svg, hover)


def _value(point: Point | None, share: bool) -> str | None:
    if point is None:
        return None
    show = percent if share else number
    if point.low == point.high:
        return show(point.value)
    return f"{show(point.value)} ({show(point.low)} to {show(point.high)})"


def _steps(point: Point, stages: Sequence[Stage]) -> str:
    stage = f"{stages[point.stage].name}, " if len(stages) > 1 else ""
    return f"{stage}step {point.step}" if point.first == point.step else f"{stage}steps {point.first} to {point.step}"


def _frame(stages: Sequence[Stage], axis: Axis, label: str, share: bool) -> str:
    drawn = [f'<text x="{LEFT}" y="10" class="axis">{escape(label)}</text>']
    bottom = HEIGHT - BOTTOM
    inner = (WIDTH - LEFT - RIGHT) / len(stages)
    for i, stage in enumerate(stages):
        start = LEFT + i * inner
        if i % 2:
            drawn.append(f'<rect class="shade" x="{start:.1f}" y="{TOP}" width="{inner:.1f}" height="{bottom - TOP}"/>')
        if i:
            drawn.append(f'<path class="boundary" d="M{start:.1f} {TOP}V{bottom}"/>')
        if len(stages) > 1:
            name = escape(_short(stage.name, int(inner / 7)))
            drawn.append(
                f'<text x="{start + inner - 4:.1f}" y="{TOP - 6}" text-anchor="end" class="stage">{name}</text>'
            )
        every = max(1, round_step(stage.steps * len(stages) / 4)) if stage.steps else 1
        for step in range(0, stage.steps + 1, int(every)):
            x = start + inner * step / max(stage.steps, 1)
            if i == 0 or step:  # the boundary's own label is the end of the stage before
                drawn.append(f'<text x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{step:,}</text>')
    for tick in axis.ticks:
        y = axis.y(tick)
        drawn.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
        drawn.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_tick(tick, share, axis.log)}</text>')
    drawn.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end" class="axis">step</text>')
    return "".join(drawn)


def _tick(value: float, share: bool, log: bool) -> str:
    if log:
        return "10" + str(round(math.log10(value))).translate(SUPERSCRIPTS)
    if share:
        return f"{100 * value:.3g} %"
    return f"{value / 1000:.3g}k" if abs(value) >= 9999 else f"{value:.3g}" if abs(value) < 999 else f"{value:,.0f}"


def _short(name: str, length: int) -> str:
    text = plain_text(name)
    return text if len(text) <= length else text[: max(length - 1, 1)] + "…"
