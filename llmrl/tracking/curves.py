"""Which curves the report draws, and how metrics rows become them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from llmrl.tracking.svg import Chart, Point, Series, Stage, lines, stacked, thin
from llmrl.tracking.text import LARGEST, is_number

Row = dict[str, Any]


class Curves(NamedTuple):
    """One chart: the metrics that `keys` matches, named by its group or else by the whole key.

    What no other chart takes is drawn at the end, so a new metric of a method is never lost.
    """

    title: str
    keys: str
    label: str
    note: str
    share: bool = False
    limits: tuple[float, float] | None = None
    kind: str = "lines"  # lines | measured | stacked | logarithmic
    each_stage: bool = False  # a chart for every stage, where their values cannot be compared
    quiet: bool = False  # left out when it is 0 throughout


PARTS = "generate|score|passes|update|sync|evaluate"
CURVES = [
    Curves(
        "Accuracy on held-out problems",
        r"eval/(.+)/accuracy",
        "accuracy",
        "With 95 % intervals.",
        True,
        (0, 1),
        "measured",
    ),
    Curves("Reward", r"reward/(mean)", "reward", "Mean of the step's rollouts."),
    Curves("Scores", r"reward/(?!mean$|std$)(.+)", "score", "Each scorer's own mean, before they are combined."),
    Curves("Answer length", r"rollout/(length)", "tokens", "Mean over the step's rollouts."),
    Curves("Held-out answer length", r"eval/(.+)/mean_length", "tokens", "Mean at each measurement.", kind="measured"),
    Curves("Entropy", r"policy/(entropy)", "nats", "Of the next token. Near 0 the policy no longer explores."),
    Curves("Loss", r"loss/(.+)", "loss", "Each stage has its own scale.", each_stage=True),
    Curves("KL divergence", r"kl/(.+)", "nats", "How far the policy is from the old and from the reference policy."),
    Curves(
        "Clip fraction", r"ratio/(clip_fraction)", "share of tokens", "Tokens whose ratio left the clip range.", True
    ),
    Curves("Gradient norm", r"gradient/(norm)", "norm", "Before clipping."),
    Curves("Learning rate", r"learning_rate", "learning rate", "As used at the step."),
    Curves(
        "Engine against trainer",
        r"rollout/logprob_gap_(mean|max)",
        "|Δ log-probability|",
        "The same tokens, as the engine and the trainer rate them. A growing gap means weights are not in step.",
        kind="logarithmic",
    ),
    Curves("Engine against trainer, KL", r"rollout/(kl)", "nats", "Estimated on the sampled tokens."),
    Curves(
        "Groups without spread",
        r"rollout/(no_spread)",
        "share of groups",
        "All rewards of the group are equal: nothing to learn from it.",
        True,
        (0, 1),
    ),
    Curves("Truncated answers", r"rollout/(truncated)", "share of rollouts", "Cut by the token limit.", True),
    Curves("Scorer errors", r"scorer/(errors)", "rollouts", "Could not be judged, and were dropped.", quiet=True),
    Curves("Throughput", r"tokens_per_second/(.+)", "tokens per second", "While generating, and while training."),
    Curves("Time of a step", rf"time/({PARTS})", "seconds", "By what it was spent on.", kind="stacked"),
]
ELSEWHERE = (
    r"reward/std|time/.+|tokens/generated|eval/.+/(low|high|num|num_prompts|tokens|accuracy|mean_length)|(global_)?step"
)


class Figure(NamedTuple):
    title: str
    note: str
    names: list[str]  # of the series, in the order of their colours
    chart: Chart


def stages_of(rows: Sequence[Row]) -> list[Stage]:
    """The stages in the order in which they ran, with the last step that each reached."""
    steps: dict[str, int] = {}
    for row in rows:
        steps[row["stage"]] = max(steps.get(row["stage"], 0), row["step"])
    return [Stage(name, last) for name, last in steps.items()]


def figures(rows: Sequence[Row]) -> tuple[list[Figure], list[Figure]]:
    """Every chart that the rows have values for, and those of metrics that CURVES does not name."""
    known: list[Figure] = []
    taken: set[str] = set()
    values = {key for row in rows for key, value in row.items() if is_number(value)}
    for curves in CURVES:
        taken |= {key for key in values if re.fullmatch(curves.keys, key)}
        stages = [stage.name for stage in stages_of(rows)]
        parts = [[row for row in rows if row["stage"] == name] for name in stages] if curves.each_stage else [rows]
        for name, part in zip(stages, parts, strict=False):
            title = f"{curves.title}, {name}" if len(parts) > 1 else curves.title
            known += _figure(curves, part, title)
    rest = sorted(key for key in values - taken if not re.fullmatch(ELSEWHERE, key))
    return known, [figure for key in rest for figure in _figure(Curves(key, re.escape(key), key, ""), rows, key)]


def _figure(curves: Curves, rows: Sequence[Row], title: str) -> list[Figure]:
    keys = dict.fromkeys(key for row in rows for key in row if re.fullmatch(curves.keys, key))
    used = [row for row in rows if any(is_number(row.get(key)) for key in keys)]
    stages = [stage for stage in stages_of(rows) if any(row["stage"] == stage.name for row in used)]
    series = [Series(_name(curves, key), _points(used, key, stages, curves)) for key in keys]
    series = [one for one in series if one.points]
    if not series or curves.quiet and not any(p.value for one in series for p in one.points):
        return []
    if curves.kind == "stacked":
        series.sort(key=lambda one: PARTS.index(one.name))  # in the order of a step
        chart = stacked(series, stages, label=curves.label)
    else:
        chart = lines(
            series,
            stages,
            label=curves.label,
            share=curves.share,
            limits=curves.limits,
            logarithmic=curves.kind == "logarithmic",
            measured=curves.kind == "measured",
        )
    return [Figure(title, curves.note, [one.name for one in series], chart)]


def _name(curves: Curves, key: str) -> str:
    found = re.fullmatch(curves.keys, key)
    return (found.group(1) if found and found.groups() else key).replace("_", " ")


def _points(rows: Sequence[Row], key: str, stages: Sequence[Stage], curves: Curves) -> list[Point]:
    index = {stage.name: i for i, stage in enumerate(stages)}
    points = []
    for row in rows:
        value = row.get(key)
        if not is_number(value) or curves.kind == "logarithmic" and value < 1 / LARGEST:
            continue
        low, high = value, value
        if key.endswith("/accuracy"):
            sides = (row.get(f"{key.removesuffix('accuracy')}{side}") for side in ("low", "high"))
            low, high = (side if is_number(side) else value for side in sides)
        points.append(Point(index[row["stage"]], row["step"], value, low, high, row["step"]))
    return points if curves.kind == "measured" else thin(points, stages)
