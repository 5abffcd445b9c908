"""Judging stored answers again, under one or several scorers, without a model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmrl import catalog, completions
from llmrl.config import Named
from llmrl.errors import LlmrlError, RecipeError, ScoringError
from llmrl.pool import Pool
from llmrl.recipe_file import parse, parse_overrides
from llmrl.results import (
    Result,
    judge_into,
    judge_stored,
    label_of,
    protocol_of,
    said,
    table,
    with_protocol,
    write_card,
)


def rescore(
    file: str | Path,
    *,
    benchmark: str | None = None,
    scorers: Sequence[str] = (),
    protocols: Sequence[str] = (),
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
) -> str:
    """The numbers of one set of scorers in words, or a table of several.

    file: completions.jsonl of `llmrl eval`, a run's rollouts or evaluations, or any data with stored answers, whose
    columns overrides of `data` map (data.columns.completion=solution). Who judges: each of `scorers`, YAML as in a
    recipe; else the benchmark's, else those the file names; under each of `protocols` where some are given. out: where
    verdicts and results.json go, a folder a set; None: nothing is written. Raises LlmrlError.
    """
    path, chosen = Path(file), catalog.get("benchmarks", benchmark)() if benchmark else None
    header = completions.header_of(path) or {}
    sets = sets_of(
        path, [named(one) for one in scorers], chosen.scorers if chosen else header.get("scorers"), protocols
    )
    changes = data_changes(overrides)
    results: list[Result] = []
    lines: list[str] = []
    with Pool() as pool:
        for some in sets:
            groups = completions.read_groups(path, chosen, changes)
            if out is None:
                results.append(judge_stored(groups, some, pool))
                continue
            folder = Path(out) / re.sub(r"[^A-Za-z0-9_.@-]+", "_", label_of(some)) if len(sets) > 1 else Path(out)
            name = benchmark or header.get("name") or path.stem
            own = chosen.protocol if chosen else header.get("protocol")
            protocol = own if not scorers and not protocols else protocol_of(some[0])
            facts = header | {"name": name, "protocol": protocol, "scorers": some, "answers": str(path)}
            with completions.alone(folder):
                results.append(judge_into(folder, name, path, groups, some, pool))
                lines.append(str(write_card(folder, results[-1].numbers, facts)))
    if all(result.numbers.accuracy is None for result in results):
        reasons = Counter(one.error for result in results for one in result.verdicts if one.error)
        often = (
            f" Most often ({reasons.most_common(1)[0][1]:,} times): {reasons.most_common(1)[0][0]}." if reasons else ""
        )
        raise ScoringError(f"{path}: nothing could be judged.{often} Look at the scorer and the data's columns.")
    numbers = (
        [label_of(sets[0]), *(f"  {line}" for line in said(results[0]))] if len(results) == 1 else [table(results)]
    )
    return "\n".join([str(path), *numbers, *lines])


def sets_of(
    path: Path, given: Sequence[Named], own: Sequence[Named] | None, protocols: Sequence[str]
) -> list[list[Named]]:
    """The sets of scorers to judge with, each under its own label."""
    if not given and not own:
        raise LlmrlError(f"{path} does not say who judges it. Name a benchmark (--bench) or a scorer (--scorer).")
    sets = [[one] for one in given] or [list(own or ())]
    if protocols:
        sets = [with_protocol(some, protocol) for some in sets for protocol in protocols]
    labels = [label_of(some) for some in sets]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise RecipeError(f"--scorer: {', '.join(twice)} is there twice. Give each once.")
    return sets


def named(text: str) -> Named:
    """A scorer out of the command line: a name, or YAML like '{name: math_answer, protocol: minerva}'."""
    problems: list[str] = []
    value, _ = parse(text, "--scorer", problems)
    if isinstance(value, dict):
        catalog.split_named(value)
    elif not isinstance(value, str):
        problems.append(f"--scorer {text!r}: expected a name or {{name: ..., <option>: ...}}.")
    if problems:
        raise RecipeError(problems)
    return value


def data_changes(overrides: Sequence[str]) -> dict[str, Any]:
    """The keys of the data section among the overrides; others are refused."""
    tree = parse_overrides(overrides).values
    wrong = [key for key in tree if key != "data"]
    if wrong or not isinstance(tree.get("data", {}), dict):
        keys = ", ".join(wrong or ["data"])
        raise RecipeError(
            f"{keys}: `llmrl score FILE` takes data.<key>=… only, such as data.columns.completion=solution."
        )
    return tree.get("data", {})
