"""From a recipe's section to the Algorithm it describes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import yaml

from llmrl import catalog, combinations, staleness
from llmrl.algorithm import FIELDS, SINGLE, STAGES, Algorithm, Extra, Part
from llmrl.batch import base_name
from llmrl.config import Named
from llmrl.errors import CatalogError, RecipeError, nearest
from llmrl.foreign import ours
from llmrl.options import bind, typed
from llmrl.plan import required
from llmrl.recipe import StageConfig
from llmrl.recipe_tree import item_key


def build(config: dict[str, Any], where: str = "algorithm") -> Algorithm:
    """The Algorithm that a recipe's section describes.

    `name` picks a method, whose own keyword-only parameters are options. Under a stage: a name, or {name, options}, or
    a list of them replaces the method's parts; a mapping without a name sets options of the part that has them.
    Raises RecipeError with every problem found, each beginning with its dotted key.
    """
    problems: list[str] = []
    method = _part_named("algorithms", config["name"], f"{where}.name") if "name" in config else None
    declared = catalog.options_of(method) if method else {}
    own = {key: value for key, value in config.items() if key in declared}
    base = Algorithm(objective=())
    if method:
        try:
            base = _call(method, own, where)
        except RecipeError as error:
            problems += error.problems
            base = _call(method, {}, where)
    changes: dict[str, Any] = {}
    for key, value in config.items():
        if key in own or key == "name":
            continue
        at = f"{where}.{key}"
        if key in FIELDS:
            changes[key], wrong = typed(FIELDS[key], value, at)
            problems += wrong
        elif key == "extra":
            changes[key], wrong = _extras(value, at)
            problems += wrong
        elif key in STAGES:
            try:
                changes[key] = _stage(base, key, value, at)
            except RecipeError as error:
                problems += error.problems
        else:
            problems.append(_unknown(base, config.get("name"), declared, key, where))
    if problems:
        raise RecipeError(problems)
    algorithm = replace(base, **changes)
    if not algorithm.objective:
        raise RecipeError(f"{where}: no objective. Name a method, such as {{name: grpo}}, or an objective.")
    return algorithm


def build_stage(stage: StageConfig) -> Algorithm:
    """The Algorithm of one stage of a recipe; problems begin with the place that set the key, or one above it."""
    try:
        algorithm = build(stage.algorithm)
        required(algorithm)
        if found := [
            *combinations.conflicts(algorithm),
            *staleness.refusals(stage, algorithm),
            *alone(stage, algorithm),
        ]:
            raise RecipeError(found)
        return algorithm
    except RecipeError as error:
        raise RecipeError(f"{_origin(stage, problem)}: {problem}" for problem in error.problems) from error


def replays(named: Named) -> bool:
    """Whether an engine hands out stored answers instead of sampling."""
    return getattr(catalog.get("engines", catalog.split_named(named)[0]), "replays", False)


def alone(stage: StageConfig, algorithm: Algorithm) -> list[str]:
    """What needs several rollouts of a prompt, where there is one."""
    if stage.rollout.group_size > 1 or replays(stage.rollout.engine):
        return []
    found, part = "rollout.group_size: found 1, expected 2 at least:", algorithm.advantage
    out = []
    needing = part is not None and getattr(catalog.unwrap(part), "needs_siblings", False)
    if needing is True or (needing and combinations.option(part, "baseline") in needing):
        out.append(
            f"{found} algorithm.advantage ({catalog.name_of(part)}) compares a rollout with the others of its prompt, and alone "
            "each would get 0. Raise it, or take a method that needs no siblings, such as reinforce, remax or ppo."
        )
    if any(name != base_name(name) for name in required(algorithm)):
        out.append(f"{found} the algorithm trains on pairs of rollouts to the same prompt. Raise it.")
    return out


def _origin(stage: StageConfig, problem: str) -> str:
    key = problem.split(" ")[0].rstrip(":")
    while key not in stage.origins and "." in key:
        key = key.rpartition(".")[0]
    return stage.origins.get(key, f"stage {stage.name}")


def _call(method: Part, options: dict[str, Any], where: str) -> Algorithm:
    try:
        return bind(method, options, where)()
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from error


def _part_named(kind: str, name: Any, where: str) -> Part:
    if not isinstance(name, str):
        raise RecipeError(f"{where}: found {name!r}, expected a name. `llmrl list {kind}` shows them.")
    try:
        return catalog.get(kind, name)
    except CatalogError as error:
        raise RecipeError(f"{where}: {error}") from error


def _stage(base: Algorithm, stage: str, value: Any, where: str) -> Any:
    """What the field of that stage becomes."""
    if isinstance(value, dict) and "name" not in value:
        parts = _with_options(base.at(stage), value, where)
    else:
        listed = {where: value}
        if isinstance(value, list) or value is None:
            listed = {f"{where}.{item_key(i, item)}": item for i, item in enumerate(value or [])}
        parts = [_part(STAGES[stage], item, at) for at, item in listed.items()]
    if stage not in SINGLE:
        return tuple(parts)
    if len(parts) > 1:
        raise RecipeError(f"{where}: found {len(parts)} parts, expected one.")
    return parts[0] if parts else None


def _extras(value: Any, where: str) -> tuple[tuple[Extra, ...], list[str]]:
    """What `extra` becomes: a list of {objective, source, coefficient, reduce}."""
    found: list[Extra] = []
    problems: list[str] = []
    for i, item in enumerate(value if isinstance(value, list) else [value] if value else []):
        at = f"{where}[{i}]"
        if not isinstance(item, dict) or "objective" not in item:
            problems.append(f"{at}: found {item!r}, expected {{objective: likelihood, coefficient: 0.1}}.")
            continue
        try:
            objective = (_part(_loss_kind(item["objective"]), item["objective"], f"{at}.objective"),)
        except RecipeError as error:
            problems += error.problems
            continue
        read = {
            "source": Literal["extra_data", "stored", "reference"],
            "coefficient": float,
            "reduce": FIELDS["reduce"],
        }
        options: dict[str, Any] = {}
        for key in item.keys() - {"objective"}:
            if key not in read:
                problems.append(
                    f"{at}.{key}: this key is not known.{nearest(key, read)} Keys: objective, {', '.join(read)}."
                )
                continue
            options[key], wrong = typed(read[key], item[key], f"{at}.{key}")
            problems += wrong
        if not problems:
            found.append(Extra(objective, **options))
    return tuple(found), problems


def _loss_kind(value: Any) -> str:
    """'regularizers' where only they have the part, such as ptx; else 'objectives'."""
    name = value.get("name") if isinstance(value, dict) else value
    return next((kind for kind in ("objectives", "regularizers") if name in catalog.table(kind)), "objectives")


def _part(kind: str, value: Any, where: str) -> Part:
    name, options = catalog.split_named(value) if isinstance(value, dict) and "name" in value else (value, {})
    return bind(_part_named(kind, name, where), options, where)


def _declaration(part: Part) -> Part:
    """What declares the part's options: the function, or the class of an object."""
    inner = catalog.unwrap(part)
    return type(inner) if hasattr(inner, "apply") and not isinstance(inner, type) else inner


def _with_options(parts: tuple[Part, ...], options: dict[str, Any], where: str) -> list[Part]:
    """The parts with each option set on the one part that declares it."""
    declared = [catalog.options_of(_declaration(part)) for part in parts]
    problems: list[str] = []
    for key in options:
        having = [catalog.name_of(p) for p, d in zip(parts, declared, strict=True) if key in d]
        if len(having) > 1:
            problems.append(f"{where}.{key}: {' and '.join(having)} both have it. List the parts, each with its name.")
        elif not parts:
            problems.append(f"{where}.{key}: there is no part to set it on. Name one: {{name: ..., {key}: ...}}.")
        elif not having:
            known, held = [k for d in declared for k in d], ", ".join(catalog.name_of(p) for p in parts)
            listing = f"Options: {', '.join(known)}." if known else "It has no options."
            problems.append(f"{where}.{key} is not an option of {held}.{nearest(key, known)} {listing}")
    if problems:
        raise RecipeError(problems)
    chosen = [{key: value for key, value in options.items() if key in d} for d in declared]
    return [_rebuilt(part, own, where) for part, own in zip(parts, chosen, strict=True)]


def _rebuilt(part: Part, options: dict[str, Any], where: str) -> Part:
    if not options:
        return part
    declaration = _declaration(part)
    if declaration is catalog.unwrap(part):
        return bind(part, options, where)
    kept = {key: getattr(part, key) for key in catalog.options_of(declaration)}  # objects keep options by their names
    return bind(declaration, kept | options, where)


def _unknown(base: Algorithm, name: str | None, declared: dict[str, Any], key: str, where: str) -> str:
    stages = [s for s in STAGES if any(key in catalog.options_of(_declaration(p)) for p in base.at(s))]
    known = [*declared, *STAGES, *FIELDS, "extra"]
    hint = f" Here it is {where}.{stages[0]}.{key}." if stages else nearest(key, known) or ours(key)
    options = f"Options: {', '.join(declared)}. " if declared else ""
    others = [k for k in (*STAGES, *FIELDS, "extra") if k not in declared]
    return f"{where}.{key} is not an option of {name or 'an algorithm'}.{hint} {options}Stages: {', '.join(others)}."


def described(algorithm: Algorithm) -> dict[str, str]:
    """The algorithm in a recipe's words: field → parts as YAML, under the names of `llmrl list`; defaults are left out."""
    out = {}
    for field, kind in STAGES.items():
        parts = [_named(part, kind) for part in algorithm.at(field)]
        if parts:
            out[field] = parts[0] if field in SINGLE else f"[{', '.join(parts)}]"
    if algorithm.before is not None:
        out["before"] = _mapping(vars(algorithm.before))
    for i, extra in enumerate(algorithm.extra):
        loss = ", ".join(_named(part, "objectives", "regularizers") for part in extra.objective)
        gate = f", under the gate {_named(extra.gate, 'advantages')}" if extra.gate is not None else ""
        out[f"extra[{i}]"] = f"{loss} on {extra.source}, coefficient {extra.coefficient:g}, {extra.reduce}{gate}"
    return out | {
        "reduce": algorithm.reduce,
        "epochs": str(algorithm.epochs),
        "minibatches": str(algorithm.minibatches),
    }


def _named(part: Part, *kinds: str) -> str:
    declaration = catalog.unwrap(_declaration(part))
    path = f"{declaration.__module__}:{declaration.__qualname__}"
    name = next((row for kind in kinds for row, place in catalog.table(kind).items() if place == path), path)
    options = {key: combinations.option(part, key) for key in catalog.options_of(declaration)}
    defaults = {key: p.default for key, p in catalog.options_of(declaration).items()}
    given = {key: value for key, value in options.items() if value != defaults[key]}
    return _mapping({"name": name} | given) if given else name


def _mapping(values: dict[str, Any]) -> str:
    return yaml.safe_dump(values, default_flow_style=True, sort_keys=False, width=float("inf")).strip()
