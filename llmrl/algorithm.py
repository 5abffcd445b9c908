"""The Algorithm value: which part at which stage. Methods are functions that return one; nothing subclasses it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from llmrl import catalog
from llmrl.batch import VOCABULARY, base_name, sources
from llmrl.config import Positive
from llmrl.errors import CatalogError, RecipeError, nearest
from llmrl.foreign import ours
from llmrl.options import bind, typed
from llmrl.recipe import StageConfig
from llmrl.recipe_tree import item_key

Part = Callable[..., Any]
STAGES = {  # field of Algorithm -> kind in the catalog, in the order they run
    "combine": "combiners",
    "select": "selections",
    "condition": "conditions",
    "advantage": "advantages",
    "shaping": "shaping",
    "objective": "objectives",
    "regularizers": "regularizers",
}
SINGLE = ("condition", "advantage")  # every other stage is a tuple of parts
BEFORE_UPDATE = ("combine", "select", "advantage", "shaping")
REDUCTIONS = ("token_mean", "sequence_mean", "sequence_sum", "fixed_length", "group_mean")
FIELDS = {"reduce": Literal[REDUCTIONS], "epochs": Positive, "minibatches": Positive}


@dataclass(frozen=True)
class Algorithm:
    """The choices of one method. Every field but the objective is optional.

    condition: an object with memory that writes feedback into prompts, before sampling (`refine`) and before
    training (`apply`). combine, select, shaping, objective, regularizers: run in the order given; objectives add up.
    epochs × minibatches: optimizer updates made from one batch.
    """

    objective: tuple[Part, ...]
    combine: tuple[Part, ...] = ()
    select: tuple[Part, ...] = ()
    condition: Any = None
    advantage: Part | None = None
    shaping: tuple[Part, ...] = ()
    regularizers: tuple[Part, ...] = ()
    reduce: str = "token_mean"
    epochs: int = 1
    minibatches: int = 1

    def __post_init__(self):
        if self.reduce not in REDUCTIONS:
            hint, modes = nearest(self.reduce, REDUCTIONS), ", ".join(REDUCTIONS)
            raise RecipeError(f"algorithm.reduce: no mode named {self.reduce!r}.{hint} Modes: {modes}.")

    def at(self, stage: str) -> tuple[Part, ...]:
        """The parts of one stage, in the order they run."""
        held = getattr(self, stage)
        return held if stage not in SINGLE else () if held is None else (held,)


class PassPlan(NamedTuple):
    """One forward pass over the batch: 'old' and 'ref' before the updates, 'current' with gradient in each of them."""

    name: str
    arrays: tuple[str, ...]
    why: str


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
        return algorithm
    except RecipeError as error:
        raise RecipeError(f"{_origin(stage, problem)}: {problem}" for problem in error.problems) from error


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
    known = [*declared, *STAGES, *FIELDS]
    hint = f" Here it is {where}.{stages[0]}.{key}." if stages else nearest(key, known) or ours(key)
    options = f"Options: {', '.join(declared)}. " if declared else ""
    others = [k for k in (*STAGES, *FIELDS) if k not in declared]
    return f"{where}.{key} is not an option of {name or 'an algorithm'}.{hint} {options}Stages: {', '.join(others)}."


def reasons(algorithm: Algorithm) -> dict[str, list[str]]:
    """Array → the parts that name it. A condition reads groups, not arrays, and is left out."""
    found: dict[str, list[str]] = {}
    for stage in STAGES:
        for part in algorithm.at(stage) if stage != "condition" else ():
            for name in catalog.inputs_of(part):
                found.setdefault(name, []).append(catalog.name_of(part))
    return found


def required(algorithm: Algorithm) -> set[str]:
    """Every array that the parts name. RecipeError when one is unknown, or not made by the time its part runs."""
    problems: list[str] = []
    for stage in STAGES:
        for part in algorithm.at(stage) if stage != "condition" else ():
            for name in catalog.inputs_of(part):
                if text := _unreadable(algorithm, stage, name):
                    problems.append(f"algorithm.{stage}: {catalog.name_of(part)} reads {name!r}, {text}")
    if problems:
        raise RecipeError(problems)
    return set(reasons(algorithm))


def _unreadable(algorithm: Algorithm, stage: str, name: str) -> str:
    try:
        made_by = {VOCABULARY[source].source for source in sources([name])}
    except KeyError:
        return f"which is not in the vocabulary of llmrl/batch.py.{nearest(name, VOCABULARY)}"
    if "current" in made_by and stage in BEFORE_UPDATE:
        return f"which exists during the update only.{nearest(f'old_{base_name(name)}', VOCABULARY)}"
    if stage == "select" and made_by & {"old", "ref"}:
        return "which the trainer's passes make after the selection, on the rows that are kept."
    if "advantage" in made_by and algorithm.advantage is None:
        return "but there is no advantage stage. Set algorithm.advantage, such as grpo."
    return ""


def passes(algorithm: Algorithm, online: bool = True) -> list[PassPlan]:
    """Which forward passes the trainer runs for one batch, in order, and for whom.

    With one update a batch, old_logprobs that only the loss names need no pass: they are logprobs.detach().
    online: whether rollouts are sampled; RecipeError when a part needs the sampler's log-probabilities and none are.
    """
    required(algorithm)
    why: dict[str, list[str]] = {}
    early: set[str] = set()
    for name, parts in reasons(algorithm).items():
        for source in sources([name]):
            why.setdefault(source, []).extend(parts)
    for stage in BEFORE_UPDATE:
        early |= {source for part in algorithm.at(stage) for source in sources(catalog.inputs_of(part))}
    if not online and "rollout_logprobs" in why:
        readers = ", ".join(dict.fromkeys(why["rollout_logprobs"]))
        raise RecipeError(f"algorithm: {readers} reads rollout_logprobs, which replayed data lacks.")
    made = {array: VOCABULARY[array].source for array in why}
    if "old_logprobs" not in early and algorithm.epochs * algorithm.minibatches == 1:
        made.pop("old_logprobs", None)
    plans = []
    for name in ("old", "ref", "current"):
        arrays = sorted(array for array, source in made.items() if source == name)
        if arrays:
            readers = (f"{array} for {', '.join(dict.fromkeys(why[array]))}" for array in arrays)
            plans.append(PassPlan(name, tuple(arrays), "; ".join(readers)))
    return plans


def droppable(algorithm: Algorithm) -> bool:
    """Whether rows with zero advantage add nothing to the loss, so that they may be left out of the forward pass."""
    parts = (*algorithm.objective, *algorithm.regularizers)
    needed = any(getattr(catalog.unwrap(part), "needs_zero_advantage_rows", False) for part in parts)
    return not needed and all("advantages" in catalog.inputs_of(part) for part in parts)
