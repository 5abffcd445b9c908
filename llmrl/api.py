"""The command line's verbs as functions: train, evaluate, check. Everything heavy is imported when it is needed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmrl.errors import LlmrlError
from llmrl.quiet import quiet_libraries
from llmrl.recipe import resolve


@dataclass(frozen=True)
class Result:
    """Where a run wrote and what it measured. metrics: the last value of every metric."""

    folder: Path
    report: Path
    metrics: dict[str, Any]


def train(
    recipe: str | Path,
    overrides: Sequence[str] | dict[str, Any] = (),
    *,
    scorers: Sequence[Callable] = (),
    num_processes: int = 1,
) -> Result | None:
    """Run every stage of a recipe and return where it wrote.

    recipe: a file, or a name below recipes/. overrides: 'key.sub=value' strings, or {'key.sub': value}. scorers: reward
    functions that replace the recipe's, TRL-style `(prompts, completions, **columns) -> list[float]` or native.
    num_processes: more than one starts them on this machine and returns None when they are done. Raises LlmrlError.
    """
    if num_processes < 1:
        raise LlmrlError(f"{num_processes} processes were asked for; expected at least 1 (--num-processes).")
    words = [f"{k}={json.dumps(v)}" for k, v in overrides.items()] if isinstance(overrides, dict) else list(overrides)
    resolved = resolve(recipe, words)
    if num_processes > 1 and "WORLD_SIZE" not in os.environ:
        from llmrl.training.launch import launch

        if scorers:
            raise LlmrlError(
                "scorers given as functions do not reach other processes; name them module:function in the recipe."
            )
        launch([str(recipe), *words], num_processes)
        return None
    quiet_libraries()
    from llmrl.training.session import run

    return run(resolved, list(scorers))


def check(recipe: str | Path, overrides: Sequence[str] = ()) -> str:
    """A report of what a recipe would do, from its data, template and scorers; nothing is trained. Raises LlmrlError."""
    quiet_libraries()
    from llmrl.training.preview import preview

    return preview(resolve(recipe, list(overrides)))


def evaluate(
    model: str, benchmarks: Sequence[str] = (), overrides: Sequence[str] = (), *, out: str | Path | None = None
) -> str:
    """Measure a model folder, a hub id or a run's last model on benchmarks; returns the numbers in words.

    Answers, verdicts and results.json go to `out`/<benchmark>/. See `llmrl.training.evaluate.evaluate_model`.
    """
    quiet_libraries()
    from llmrl.training.evaluate import evaluate_model

    return evaluate_model(model, list(benchmarks), list(overrides), out)


def score(file: str | Path, **options: Any) -> str:
    """Judge stored answers again without a model; see `llmrl.rescoring.rescore` for the options."""
    from llmrl.rescoring import rescore

    return rescore(file, **options)


def compare(first: str | Path, second: str | Path) -> str:
    """Whether two results of `evaluate` or `score` differ by more than chance, in words."""
    from llmrl.results import compare

    return compare(Path(first), Path(second))
