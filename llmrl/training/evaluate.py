"""Measuring a finished model from the command line: sample into a file, judge the file, say the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmrl import catalog, completions, results
from llmrl.config import Evaluation, Model, Named, Section
from llmrl.errors import LlmrlError, RecipeError, nearest
from llmrl.evaluation import generate
from llmrl.policy.load import load_policy
from llmrl.policy.model import Policy
from llmrl.pool import Pool
from llmrl.problems import validated
from llmrl.recipe import Recipe, resolve
from llmrl.recipe_file import parse_overrides
from llmrl.recipe_tree import Tree, overlay
from llmrl.run import Measurement, fitted, make_engine, measurement
from llmrl.scoring import make_scorers
from llmrl.training.provenance import facts_of, setting_of, short, slug
from llmrl.types import Prompt

DEFAULT_MAX_TOKENS = 1024  # where neither a benchmark, the run nor an override says how long an answer may be
MARGIN = 64  # tokens that the marks around a condition may take
UNCHANGED = {"source", "subset", "revision", "limit", "max_prompt_tokens"}  # data keys that leave a protocol what it is


class Sampler(Section):
    """Overrides of `llmrl eval` that are no keys of an evaluation."""

    engine: Named = "transformers"
    seed: int = 0


@dataclass(frozen=True)
class Asked:
    """One measurement to take. changed: the user's keys that depart from the benchmark's protocol."""

    name: str
    config: Evaluation
    changed: list[str]


def evaluate_model(target: str, benchmarks: list[str], overrides: list[str], out: str | None = None) -> str:
    """Numbers with 95 % intervals, in words; answers, verdicts and a results.json a measurement stay in a folder.

    target: a run's folder (its last model; without benchmarks its own held-out measurements), a model folder or a hub
    id. overrides: keys of an evaluation (limit, num_samples, temperature, data.source, ...), for one benchmark of
    several as gsm8k.limit; `engine` and `seed`. out: FOLDER/<benchmark>/; None: a folder below evals/ whose name changes
    with the setting. The same command again goes on where it was stopped; answers that are there are not sampled again.
    """
    folder = Path(target)
    if not folder.exists() and folder.parent.is_dir() and folder.parent != Path("."):  # no hub has to be asked for that
        hint = nearest(folder.name, [beside.name for beside in folder.parent.iterdir() if beside.is_dir()])
        raise LlmrlError(f"{folder.parent} has no {folder.name}.{hint} Name a run, a folder with a model, or a hub id.")
    is_run = (folder / "recipe.yaml").is_file()
    run = resolve(folder / "recipe.yaml") if is_run else None
    tree: dict[str, Any] = dict(parse_overrides(overrides).values)
    given = {key: tree.pop(key) for key in Sampler.model_fields if key in tree}
    sampler = validated(Sampler, {"seed": run.run.seed if run else 0} | given)
    if isinstance(sampler.engine, dict) and not isinstance(sampler.engine.get("name"), str):
        raise RecipeError(f"engine: {sampler.engine} has no name. Write engine={{name: transformers, <option>: ...}}.")
    asked = what_to_measure(target, run, benchmarks, tree)
    for one in asked:  # a wrong scorer or option is refused before the model loads
        make_scorers(one.config.scorers)
    path = str(folder / "final") if run else target
    model = Model(path=path)
    if run:
        model = Model(path=path, precision=run.run.model.precision, attention=run.run.model.attention)
    policy = load_policy(model, folder, seed=sampler.seed)
    max_tokens = run.stages[-1].rollout.max_tokens if run and not benchmarks else DEFAULT_MAX_TOKENS
    base = Path(out) if out else (folder / "evals" if run else Path("evals") / slug(target))
    lines = [f"{path}, engine {catalog.split_named(sampler.engine)[0]}, seed {sampler.seed}"]
    with Pool() as pool:
        for one in asked:
            what = measurement(one.config, max_tokens, policy.tokenizer, sampler.seed)
            lines += measure(one, what, policy, path, sampler, base, hashed=out is None, pool=pool)
    return "\n".join(lines)


def what_to_measure(target: str, run: Recipe | None, benchmarks: Sequence[str], changes: dict[str, Any]) -> list[Asked]:
    """The evaluations that were asked for, with the overrides laid over them. RecipeError with every problem."""
    found = {name.rpartition(":")[2]: {"benchmark": name} for name in benchmarks}
    for name in benchmarks:
        catalog.get("benchmarks", name)
    if not found:
        if run is None:
            raise LlmrlError(
                f"{target} is not a run's folder, so there is no measurement of its own to repeat. Name what to "
                "measure with --bench; `llmrl list benchmarks` shows them."
            )
        own = run.stages[-1].evaluation
        found = {n: e.model_dump(exclude_unset=True) for n, e in own.items() if e.scorers or e.benchmark}
    for_all = {key: value for key, value in changes.items() if key not in found}
    if len(found) > 1 and isinstance(for_all.get("data"), dict) and "source" in for_all["data"]:
        first = next(iter(found))
        raise RecipeError(
            f"data.source is one source for {len(found)} measurements. Say whose it is: {first}.data.source=FILE."
        )
    asked = []
    for name, base in found.items():
        own = changes.get(name) or {}
        if not isinstance(own, dict):
            raise RecipeError(f"{name} is a measurement, {own!r} none of its keys. Write {name}.<key>={own!r}.")
        mine = overlay(Tree(for_all), Tree(own)).values
        merged, data = overlay(Tree(base), Tree(mine)).values, mine.get("data")
        data = data if isinstance(data, dict) else {}
        if "benchmark" in base and data:
            merged["data"] = {"source": catalog.get("benchmarks", base["benchmark"])().data["source"]} | merged["data"]
        changed = [key for key in ("scorers", "feedback") if key in mine]
        changed += [f"data.{key}" for key in data if key not in UNCHANGED]
        asked.append(Asked(name, validated(Evaluation, merged, more=Sampler.model_fields), changed))
    return asked


def measure(
    asked: Asked,
    what: Measurement,
    policy: Policy,
    path: str,
    sampler: Sampler,
    base: Path,
    *,
    hashed: bool,
    pool: Pool,
) -> list[str]:
    """Sample what is not there yet, judge, write, and say it."""
    prompts = conditioned(what, policy)
    setting = setting_of(what, prompts, policy, path, sampler.engine, sampler.seed)
    place = base / (f"{asked.name}-{short(setting)}" if hashed else asked.name)
    answers, facts = place / "completions.jsonl", facts_of(what, policy, path) | {"changed": asked.changed}
    header = {"llmrl": completions.KIND, "name": asked.name, "setting": setting, **facts}
    with completions.alone(place):
        there = {rows[0]["prompt_id"] for rows in completions.resume(answers, header)}
        left = [prompt for prompt in prompts if prompt.id not in there]
        if left:
            sample(left, what, policy, sampler, answers)
        groups = completions.read_groups(answers)
        found = results.judge_into(place, asked.name, answers, groups, facts["scorers"], pool)
        card = results.write_card(place, found.numbers, {"name": asked.name, "setting": setting, **facts})
    lines = [heading(asked, what, facts), *results.said(found), str(card)]
    return [f"  {lines[0]}", *(f"    {line}" for line in lines[1:])]


def heading(asked: Asked, what: Measurement, facts: dict[str, Any]) -> str:
    """What was measured and how, in one line."""
    protocol = facts["protocol"] or results.label_of(facts["scorers"])
    if asked.changed:
        protocol += f" changed in {', '.join(asked.changed)}"
    sampling = what.sampling
    how = "greedy" if sampling.temperature == 0 else f"temperature {sampling.temperature:g}, top_p {sampling.top_p:g}"
    line = f"{asked.name}, {protocol}: {what.num_samples} a prompt, {how}, at most {sampling.max_tokens:,} tokens"
    missing = facts["rows"]["missing"]
    return f"{line}; {missing:,} problems of the benchmark are not in it" if missing else line


def sample(prompts: Sequence[Prompt], what: Measurement, policy: Policy, sampler: Sampler, answers: Path) -> None:
    """Answers to the prompts, each written as soon as it is there."""
    engine = make_engine(sampler.engine, policy, (max(len(p.ids) for p in prompts), what.sampling.max_tokens))
    try:
        engine.sync(policy, 0)
        for group in generate(
            engine,
            prompts,
            what.sampling,
            num_samples=what.num_samples,
            seed=sampler.seed,
            decode=lambda ids: policy.tokenizer.decode(list(ids), skip_special_tokens=True),
        ):
            completions.append_group(answers, group)
    finally:
        engine.close()


def conditioned(what: Measurement, policy: Policy) -> list[Prompt]:
    """The prompts, under the condition that the evaluation asks for."""
    prompts, condition = what.prompts.prompts, what.config.feedback
    if condition is None:
        return prompts
    limit = what.prompts.report.longest + len(policy.tokenizer(condition)["input_ids"]) + MARGIN
    return [fitted(p.conditioned(condition), policy.tokenizer, limit) for p in prompts]
