"""What the model wrote, as HTML. Every text of a model or a data set goes through `shown`, which escapes it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from llmrl.tracking.folder import RunFolder
from llmrl.tracking.text import is_number, number, plain_text

Record = dict[str, Any]
MAX_TEXT = 2000
MAX_STEPS, MAX_MEASURED, MAX_PROMPTS = 30, 8, 12
OUTCOMES = {  # right (before, after): what it is called and its colour, in the order shown
    (False, True): ("solved by training", "good"),
    (True, False): ("lost in training", "bad"),
    (False, False): ("wrong before and after", ""),
    (True, True): ("right before and after", ""),
}


def shown(text: Any, limit: int = MAX_TEXT) -> str:
    """Any text, escaped for HTML, its middle left out beyond `limit` characters; thoughts are set apart."""
    clean = plain_text(str(text))
    if len(clean) > limit:
        left_out = f"\n… {len(clean) - limit:,} characters left out …\n"
        clean = clean[: limit * 2 // 3] + left_out + clean[-(limit // 3) :]
    return re.sub(
        r"&lt;think&gt;.*?(?:&lt;/think&gt;|$)", r'<span class="thought">\g<0></span>', escape(clean), flags=re.S
    )


def evenly(items: Sequence[Any], num: int) -> list[Any]:
    """At most `num` of the items at equal distances, the first and the last among them."""
    if len(items) <= num:
        return list(items)
    return [items[round(i * (len(items) - 1) / (num - 1))] for i in range(num)]


def training_section(folder: RunFolder, labels: Mapping[int, str]) -> str:
    """The best and the worst rollout of up to 30 steps, the last one on show. labels: {global step: its name}."""
    records = {step: folder.rollouts(step) for step in evenly(folder.steps_with_rollouts(), MAX_STEPS)}
    frames = {_label(labels, step): _step(found, _label(labels, step)) for step, found in records.items() if found}
    if not frames:
        return ""
    browser = _slider(list(frames)) + _frames(list(frames.values()))
    return f'<section class="browser"><h2>Rollouts of a training step</h2>{browser}</section>'


def measured_sections(folder: RunFolder, labels: Mapping[int, str]) -> str:
    """One section for every evaluation with kept answers."""
    found = folder.evaluations()
    num_prompts = max(2, MAX_PROMPTS // (len(found) + 1))
    return "".join(_measured(folder, name, steps, num_prompts, labels) for name, steps in found.items())


def _measured(folder: RunFolder, name: str, steps: Sequence[int], num_prompts: int, labels: Mapping[int, str]) -> str:
    """Answers to the same prompts at the first measurement and at a later one, side by side."""
    chosen = evenly(steps, MAX_MEASURED)
    answers = [_first_answers(folder.evaluation(name, step)) for step in chosen]
    before, after = answers[0], answers[-1]
    kinds: dict[tuple[bool, bool], list[str]] = {kind: [] for kind in OUTCOMES}
    for prompt in before:
        if prompt in after:
            kinds[before[prompt]["correct"], after[prompt]["correct"]].append(prompt)
    names = [_label(labels, step) for step in chosen]
    several = len(chosen) > 1
    blocks = []
    for prompt in _in_turn(list(kinds.values()))[:num_prompts]:
        cards = [_answer(label, found.get(prompt)) for label, found in zip(names, answers, strict=True)]
        title, tone = OUTCOMES[before[prompt]["correct"], after[prompt]["correct"]]
        badge = f'<span class="badge {tone}">{title}</span>' if several else ""
        pair = f"<div>{cards[0]}</div>{_frames(cards[1:])}" if several else _frames(cards)
        blocks.append(
            f'<div class="case"><div class="asked"><p class="prompt">{shown(after[prompt].get("prompt", ""), 1200)}</p>'
            f'{badge}</div><div class="pair">{pair}</div></div>'
        )
    counts = [f"<b>{len(prompts):,}</b> {OUTCOMES[kind][0]}" for kind, prompts in kinds.items() if prompts and several]
    intro = f'<p class="note">First answer to each prompt. {" · ".join(counts)}</p>'
    body = "".join([f"<h2>Answers: {shown(name)}</h2>", intro, _slider(names[1:]), *blocks])
    return f'<section class="browser">{body}</section>'


def _label(labels: Mapping[int, str], step: int) -> str:
    return labels.get(step, f"step {step:,}")


def _first_answers(records: Sequence[Record]) -> dict[str, Record]:
    """{prompt: its first answer that could be judged}."""
    found: dict[str, Record] = {}
    for record in records:
        if record.get("correct") is not None:
            found.setdefault(record.get("prompt_id", ""), record | {"correct": bool(record["correct"])})
    return found


def _answer(label: str, record: Record | None) -> str:
    card = '<p class="note">There is no answer that could be judged.</p>' if record is None else _rollout(record)
    return f'<p class="when">{shown(label)}</p>{card}'


def _in_turn(kinds: list[list[str]]) -> list[str]:
    """One of each kind, then a second of each, and so on."""
    return [kind[i] for i in range(max(map(len, kinds), default=0)) for kind in kinds if i < len(kind)]


def _slider(labels: Sequence[str]) -> str:
    if len(labels) < 2:
        return ""
    last = len(labels) - 1
    return (
        f'<label class="slider" hidden><input type="range" min="0" max="{last}" value="{last}" '
        f'data-labels="{escape(json.dumps(labels))}"><output>{shown(labels[-1])}</output></label>'
    )


def _frames(frames: Sequence[str]) -> str:
    """One of them is seen at a time, the last at first; the page's script changes it with the slider."""
    last = len(frames) - 1
    divs = (f'<div class="frame"{" hidden" if i < last else ""}>{content}</div>' for i, content in enumerate(frames))
    return f'<div class="frames">{"".join(divs)}</div>'


def _step(records: Sequence[Record], label: str) -> str:
    """The best and the worst of a step, or its first two rows where nothing tells them apart."""
    ranked = sorted((r for r in records if is_number(r.get("reward"))), key=lambda r: r["reward"])
    if ranked and ranked[0]["reward"] < ranked[-1]["reward"]:
        picked = [("highest reward", ranked[-1]), ("lowest reward", ranked[0])]
    else:
        picked = [("example", record) for record in records[:2]]
    truncated = sum(bool(r.get("truncated")) for r in records)
    kept = sum(r.get("kept") is not False for r in records)
    note = f"{shown(label)}: {len(records):,} rollouts, {kept:,} trained on, {truncated:,} truncated."
    cards = "".join(
        f'<div><p class="when">{title}</p><p class="prompt">{shown(record.get("prompt", ""), 1200)}</p>'
        f"{_rollout(record)}</div>"
        for title, record in picked
    )
    return f'<p class="note">{note}</p><div class="pair">{cards}</div>'


def _rollout(record: Record) -> str:
    facts = []
    if "correct" in record:
        facts.append(_badge("right", "good") if record["correct"] else _badge("wrong", "bad"))
    numbers = {name: record[name] for name in ("reward", "advantage") if is_number(record.get(name))}
    facts += [f"{name} <b>{number(value)}</b>" for name, value in numbers.items()]
    facts += [f"<b>{len(record['ids']):,}</b> tokens"] if record.get("ids") else []
    facts += [_badge("truncated", "bad")] if record.get("truncated") else []
    facts += [_badge("not trained on", "")] if record.get("kept") is False else []
    feedback = record.get("feedback")
    condition = f'<p class="note">Asked under the feedback: {shown(feedback, 400)}</p>' if feedback else ""
    scores = "".join(_score(name, score) for name, score in (record.get("scores") or {}).items())
    table = f"<table>{scores}</table>" if scores else ""
    return (
        f'<article class="rollout"><p class="facts">{"".join(f"<span>{fact}</span>" for fact in facts)}</p>'
        f"{condition}<pre>{shown(record.get('text', ''))}</pre>{table}</article>"
    )


def _score(name: str, score: Record) -> str:
    value = number(score["value"]) if is_number(score.get("value")) else "–"
    said = [shown(score["feedback"], 400)] if score.get("feedback") else []
    if score.get("evidence"):
        said.append(f"<code>{shown(json.dumps(score['evidence'], ensure_ascii=False), 400)}</code>")
    if score.get("error"):
        said.append(f"{_badge('error', 'bad')} {shown(score['error'], 400)}")
    return f"<tr><th>{shown(name)}</th><td>{value}</td><td>{' '.join(said)}</td></tr>"


def _badge(text: str, tone: str) -> str:
    return f'<span class="badge {tone}">{text}</span>'
