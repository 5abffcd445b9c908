"""Measuring a finished model from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmrl import evaluation
from llmrl.config import Evaluation, Model
from llmrl.errors import LlmrlError, RecipeError, nearest
from llmrl.policy.model import Policy, load_policy
from llmrl.problems import explain
from llmrl.recipe import resolve
from llmrl.recipe_file import parse_overrides
from llmrl.run import Measurement, fitted, make_engine, measurement

DEFAULT_MAX_TOKENS = 1024  # where neither a benchmark, the run nor an override says how long an answer may be

MARGIN = 64  # tokens that the marks around a condition may take


def evaluate_model(target: str, benchmarks: list[str], overrides: list[str]) -> str:
    """A table of accuracies with 95 % intervals.

    target: a run's folder (its last model; without benchmarks its own held-out measurements), a model folder or a hub id.
    overrides: keys of an evaluation (limit, num_samples, temperature, max_tokens, data.source, ...), `engine` and `seed`.
    """
    folder = Path(target)
    is_run = (folder / "recipe.yaml").is_file()
    tree: dict[str, Any] = dict(parse_overrides(overrides).values)
    run = resolve(folder / "recipe.yaml") if is_run else None
    engine, seed = tree.pop("engine", "transformers"), tree.pop("seed", run.run.seed if run else 0)
    max_tokens = DEFAULT_MAX_TOKENS
    found: dict[str, Evaluation] = {name: settings({"benchmark": name}, tree) for name in benchmarks}
    if not found:
        if not is_run:
            raise LlmrlError(
                f"{target} is not a run's folder, so there is no measurement of its own to repeat. Name what to "
                "measure with --benchmark; `llmrl list benchmarks` shows them."
            )
        last = run.stages[-1]
        max_tokens = last.rollout.max_tokens
        own = {name: e for name, e in last.evaluation.items() if e.scorers or e.benchmark}
        found = {name: settings(e.model_dump(exclude_unset=True), tree) for name, e in own.items()}
    path = str(folder / "final") if is_run else target
    model = Model(path=path)
    if run:
        model = Model(path=path, precision=run.run.model.precision, attention=run.run.model.attention)
    policy = load_policy(model, folder, seed=seed)
    measured = {name: measurement(config, max_tokens, policy.tokenizer, seed) for name, config in found.items()}
    lines = [f"{path}, engine {engine if isinstance(engine, str) else engine['name']}, seed {seed}"]
    lines += [f"  {name}: {line(m, policy, engine, seed)}" for name, m in measured.items()]
    return "\n".join(lines)


def settings(base: dict[str, Any], changes: dict[str, Any]) -> Evaluation:
    """An evaluation with the overrides laid over it. RecipeError with every problem."""
    from pydantic import ValidationError

    for key in changes:
        if key not in Evaluation.model_fields:
            known = [*Evaluation.model_fields, "engine", "seed"]
            raise RecipeError(f"{key} is not a key of an evaluation.{nearest(key, known)} Keys: {', '.join(known)}.")
    merged = base | changes
    if isinstance(changes.get("data"), dict):
        merged["data"] = data_of(base) | changes["data"]
    try:
        return Evaluation.model_validate(merged)
    except ValidationError as error:
        raise RecipeError([f"{'.'.join(p.keys)}: {p.text}" for p in explain(error, merged)]) from error


def data_of(base: dict[str, Any]) -> dict[str, Any]:
    """The data that an evaluation has without overrides."""
    from llmrl import catalog

    return base.get("data") or catalog.get("benchmarks", base["benchmark"])().data


def line(what: Measurement, policy: Policy, engine: Any, seed: int) -> str:
    """Sample, judge, and say it in one line."""
    prompts, condition = what.prompts.prompts, what.config.feedback
    if condition is not None:
        limit = what.prompts.report.longest + len(policy.tokenizer(condition)["input_ids"]) + MARGIN
        prompts = [fitted(p.conditioned(condition), policy.tokenizer, limit) for p in prompts]
    sampler = make_engine(engine, policy, (max(len(p.ids) for p in prompts), what.sampling.max_tokens))
    try:
        sampler.sync(policy, 0)
        result = evaluation.evaluate(
            sampler,
            prompts,
            what.scorers,
            what.sampling,
            num_samples=what.num_samples,
            seed=seed,
            decode=lambda ids: policy.tokenizer.decode(list(ids), skip_special_tokens=True),
        )
    finally:
        sampler.close()
    if result.accuracy is None:
        return f"nothing could be judged; {result.errors} errors"
    return (
        f"accuracy {100 * result.accuracy:.1f} % ({100 * result.low:.1f} to {100 * result.high:.1f}) of {result.num} answers, "
        f"{what.num_samples} a prompt, temperature {what.sampling.temperature:g}, at most {what.sampling.max_tokens} tokens, "
        f"{100 * result.truncated:.1f} % cut, {result.errors} errors"
    )
