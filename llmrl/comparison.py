"""Whether recipes differ by more than chance: the same seeds side by side, differences seed by seed, in words and pictures.

Nothing here runs anything: finished runs come in as metrics rows.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from statistics import fmean
from typing import NamedTuple

from llmrl.errors import LlmrlError, nearest
from llmrl.ops.intervals import Interval, over_seeds
from llmrl.tracking.curves import Row, stages_of
from llmrl.tracking.page import STYLE, page
from llmrl.tracking.svg import NUM_COLOURS, Axis, Chart, Point, Series, Stage, lines
from llmrl.tracking.text import is_number, number

Runs = Mapping[str, Mapping[int, Sequence[Row]]]  # recipe -> seed -> metrics rows
MEASURED = re.compile(r"eval/.+/accuracy")
MORE_IS_BETTER = re.compile(r"eval/.+/(accuracy|margin)|reward/.+")
BOOKKEEPING = ("stage", "step", "global_step")


class Result(NamedTuple):
    """A recipe's values by seed and how they differ from the first recipe's: None for the first itself."""

    recipe: str
    values: dict[int, float]
    difference: Interval | None
    verdict: str

    @property
    def mean(self) -> float:
        return fmean(self.values.values())


class Comparison(NamedTuple):
    """Every recipe against the first, on one metric."""

    metric: str
    results: list[Result]


def compare(runs: Runs, metric: str | None = None) -> Comparison:
    """Compare finished runs on a metric: by default the first held-out accuracy that all have, else the mean reward.

    The difference of a recipe to the first is worked out for each seed; its interval is Student's over the seeds.
    Raises LlmrlError where the recipes have no such metric in common.
    """
    metric = shared_metric(runs, metric)
    values = {
        recipe: {seed: value_of(rows, metric) for seed, rows in by_seed.items()} for recipe, by_seed in runs.items()
    }
    first = next(iter(values.values()))
    results = []
    for recipe, own in values.items():
        if own is first:
            results.append(Result(recipe, own, None, ""))
        else:
            difference = over_seeds([own[seed] - first[seed] for seed in first])
            results.append(Result(recipe, own, difference, verdict(difference, metric)))
    return Comparison(metric, results)


def shared_metric(runs: Runs, asked: str | None) -> str:
    """The metric that every run has a number of. LlmrlError names what each recipe has, where they share none."""
    held = {
        recipe: set.intersection(
            *({k for r in rows for k, v in r.items() if is_number(v)} for rows in by_seed.values())
        )
        for recipe, by_seed in runs.items()
    }
    both = sorted(set.intersection(*held.values()) - set(BOOKKEEPING))
    if asked is not None:
        if asked in both:
            return asked
        lacking = [recipe for recipe, names in held.items() if asked not in names]
        raise LlmrlError(f"{', '.join(lacking)}: no metric {asked!r}.{nearest(asked, both)} Common: {_listed(both)}.")
    found = [name for name in both if MEASURED.fullmatch(name)] or [name for name in both if name == "reward/mean"]
    if not found:
        has = "; ".join(f"{recipe} has {_listed(sorted(names - set(BOOKKEEPING)))}" for recipe, names in held.items())
        raise LlmrlError(f"no accuracy and no reward that all recipes have. Name a metric of all with --metric: {has}.")
    return found[0]


def _listed(names: Sequence[str]) -> str:
    """The names, measurements first, timing and counts left out."""
    kept = [n for n in names if not n.startswith(("time/", "tokens"))]
    return ", ".join(sorted(kept, key=lambda n: (not n.startswith("eval/"), n))) or "nothing"


def value_of(rows: Sequence[Row], metric: str) -> float:
    """What a run reached: the last measurement of an evaluation, the mean over the last tenth of the steps of the rest."""
    values = [row[metric] for row in rows if is_number(row.get(metric))]
    return values[-1] if metric.startswith("eval/") else fmean(values[-max(1, len(values) // 10) :])


def verdict(difference: Interval, metric: str) -> str:
    """'better', 'worse' or 'not distinguishable'; 'higher' or 'lower' where the metric has no better side."""
    if difference.low <= 0 <= difference.high:
        return "not distinguishable"
    words = ("better", "worse") if MORE_IS_BETTER.fullmatch(metric) else ("higher", "lower")
    return words[difference.mean < 0]


def table(found: Comparison) -> str:
    """The comparison as lines of text, at the end in a sentence for each recipe."""
    head = ("recipe", "mean", "by seed", f"difference to {found.results[0].recipe}, 95 %", "verdict")
    cells = [head, *(_cells(result) for result in found.results)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    body = "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)
    return "\n".join([f"{found.metric}: {_how(found)}", body, *words(found)])


def _cells(result: Result) -> tuple[str, ...]:
    by_seed = " ".join(number(value) for value in result.values.values())
    return result.recipe, number(result.mean), by_seed, _interval(result.difference), result.verdict


def _interval(difference: Interval | None) -> str:
    if difference is None:
        return ""
    if math.isinf(difference.low):
        return f"{difference.mean:+.3g} (one seed has no interval)"
    return f"{difference.mean:+.3g} ({difference.low:+.3g} to {difference.high:+.3g})"


def _how(found: Comparison) -> str:
    what = "last measurement" if found.metric.startswith("eval/") else "mean over the last tenth of the steps"
    seeds = list(found.results[0].values)
    return f"{what} of each run; seeds {', '.join(map(str, seeds))}, paired seed by seed, Student's t over seeds"


def as_json(found: Comparison) -> str:
    """The comparison as data; ends of an interval that are infinite are null."""

    def ends(difference: Interval | None) -> list[float | None] | None:
        return difference and [v if math.isfinite(v) else None for v in difference]

    results = [
        {
            "recipe": r.recipe,
            "mean": r.mean,
            "values": r.values,
            "difference": ends(r.difference),
            "verdict": r.verdict,
        }
        for r in found.results
    ]
    return json.dumps({"metric": found.metric, "results": results}, indent=1) + "\n"


def curves(runs: Runs, metric: str) -> Chart:
    """The metric over the steps: mean of the seeds, from the least to the greatest of them around it.

    Stages that all runs have are drawn apart, as in a run's own report; else every step counts from the run's start.
    """
    everyone = [rows for by_seed in runs.values() for rows in by_seed.values()]
    alike = len({tuple(stage.name for stage in stages_of(rows)) for rows in everyone}) == 1
    places = {rows["stage"] for run in everyone for rows in run if is_number(rows.get(metric))} if alike else {""}
    steps = {name: 0 for name in (row["stage"] if alike else "" for row in everyone[0]) if name in places}
    names, series = list(steps), []
    for recipe, by_seed in runs.items():
        at: dict[tuple[int, int], list[float]] = {}
        for rows in by_seed.values():
            for row in rows:
                name, step = (row["stage"], row["step"]) if alike else ("", row["global_step"])
                if is_number(row.get(metric)):
                    steps[name] = max(steps[name], step)
                    at.setdefault((names.index(name), step), []).append(row[metric])
        points = [Point(*place, fmean(v), min(v), max(v), place[1]) for place, v in sorted(at.items())]
        series.append(Series(recipe, points))
    share, stages = MEASURED.fullmatch(metric) is not None, [Stage(name, last) for name, last in steps.items()]
    return lines(series, stages, label=metric, share=share, measured=metric.startswith("eval/"))


def differences(found: Comparison) -> str:
    """SVG: a line a recipe; the interval of its difference to the first, a faint dot for each seed, a line at 0."""
    width, left, row = 560, 150, 30
    first, others = found.results[0], found.results[1:]
    dots = [[value - first.values[seed] for seed, value in r.values.items()] for r in others]
    ends = [v for r in others for v in r.difference if math.isfinite(v)]
    axis = Axis.linear(min([0.0, *ends, *sum(dots, [])]), max([0.0, *ends, *sum(dots, [])]))
    height = row * len(others) + 30

    def x(value: float) -> float:
        return round(left + (value - axis.low) / (axis.high - axis.low) * (width - left - 24), 1)

    drawn = []
    for tick in axis.ticks:
        kind = "boundary" if tick == 0 else "grid"
        drawn.append(f'<path class="{kind}" d="M{x(tick)} 4V{height - 22}"/>')
        drawn.append(f'<text x="{x(tick)}" y="{height - 6}" text-anchor="middle">{tick:+.3g}</text>')
    for i, (result, values) in enumerate(zip(others, dots, strict=True)):
        y, interval = row * i + 18, result.difference
        shapes = "".join(f'<circle cx="{x(value)}" cy="{y}" r="2.5" opacity=".45"/>' for value in values)
        if math.isfinite(interval.low):
            shapes += f'<path class="interval" d="M{x(interval.low)} {y}H{x(interval.high)}"/>'
        name = escape(result.recipe[:22])
        drawn.append(f'<text class="name" x="{left - 12}" y="{y + 4}" text-anchor="end">{name}</text>')
        drawn.append(
            f'<g class="c{(i + 1) % NUM_COLOURS}">{shapes}<circle cx="{x(interval.mean)}" cy="{y}" r="5"/></g>'
        )
    label = escape(f"difference in {found.metric} to {first.recipe}")
    return f'<svg viewBox="0 0 {width} {height}" class="chart" role="img" aria-label="{label}">{"".join(drawn)}</svg>'


def standalone(svg: str) -> str:
    """A drawing as a file of its own, with the page's style in it."""
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(
        ">", f"><style>{STYLE}</style>", 1
    )


def report(found: Comparison, runs: Runs, commands: Sequence[str]) -> str:
    """The page: table, differences, curves, and the commands of the runs."""
    chart = curves(runs, found.metric)
    head = ("recipe", "mean", "by seed", "difference, 95 %", "verdict")
    rows = "".join(f"<tr>{''.join(f'<td>{escape(c)}</td>' for c in _cells(r))}</tr>" for r in found.results)
    title = f"{found.metric}: {' against '.join(r.recipe for r in found.results)}"
    legend = "".join(f'<span><i class="c{i % NUM_COLOURS}"></i>{escape(name)}</span>' for i, name in enumerate(runs))
    body = (
        f'<header><h1>{escape(title)}</h1><p class="lead">{escape(_how(found))}</p></header>'
        f'<div class="card"><table><tr>{"".join(f"<th>{h}</th>" for h in head)}</tr>{rows}</table>'
        f'<p class="note">Every interval is of one comparison; of twenty, one excludes 0 by chance.</p></div>'
        f'<div class="grid"><div><h2>Differences to {escape(found.results[0].recipe)}</h2>'
        f'<div class="card">{differences(found)}</div></div>'
        f'<div><h2>Over the run</h2><figure class="card" data-chart="0">{chart.svg}<div class="legend">{legend}</div>'
        '<p class="note">Mean of the seeds; around it from the least to the greatest.</p></figure></div></div>'
        f"<h2>Runs</h2><div class='card'><pre>{escape(chr(10).join(commands))}</pre></div>"
    )
    return page(title, body, [chart.hover])


def words(found: Comparison) -> list[str]:
    """One sentence for each recipe but the first."""
    first = found.results[0].recipe
    return [
        f"{r.recipe} and {first} are not distinguishable."
        if r.verdict == "not distinguishable"
        else f"{r.recipe} is {r.verdict} than {first}."
        for r in found.results[1:]
    ]
