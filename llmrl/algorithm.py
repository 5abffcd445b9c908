"""The Algorithm value: which part at which stage. Methods are functions that return one; nothing subclasses it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from llmrl import catalog, combinations
from llmrl.batch import VOCABULARY, base_name, sources
from llmrl.config import Natural, Positive
from llmrl.errors import CatalogError, RecipeError, nearest
from llmrl.foreign import ours
from llmrl.options import bind, typed
from llmrl.recipe import StageConfig
from llmrl.recipe_tree import item_key

Part = Callable[..., Any]
STAGES = {  # field of Algorithm -> kind in the catalog, in the order they run
    "sampling": "sampling",
    "combine": "combiners",
    "select": "selections",
    "condition": "conditions",
    "advantage": "advantages",
    "shaping": "shaping",
    "prepare": "shaping",
    "objective": "objectives",
    "regularizers": "regularizers",
    "perturb": "perturbations",
    "update": "updates",
    "diagnostics": "diagnostics",
}
SINGLE = ("sampling", "condition", "advantage", "perturb", "update")  # every other stage is a tuple of parts
WITHOUT_ARRAYS = ("sampling", "condition", "perturb", "update")  # stages whose parts read something else
BEFORE_UPDATE = ("combine", "select", "advantage", "shaping", "diagnostics")
REDUCTIONS = ("token_mean", "sequence_mean", "sequence_sum", "fixed_length", "group_mean")


@dataclass(frozen=True)
class Before:
    """Rollouts of every prompt by the policy that the stage begins with, ahead of training: `anchor_rewards`.

    num_samples: rollouts of each. refresh_every: steps after which they are made anew by the policy of that time; 0: never.
    """

    num_samples: Positive = 8
    refresh_every: Natural = 0


@dataclass(frozen=True)
class Extra:
    """A second batch in the same update, with its own counts.

    source: extra_data, the recipe's section of that name; stored, the completions that came with this step's prompts;
    reference, right answers of the first policy to prompts that a selection left out. gate: a part like an advantage, run
    on the rollouts; its value for a prompt becomes `advantages` of the prompt's extra rows, and sequences are averaged
    over all prompts of the mini-batch, with a row or without.
    """

    objective: tuple[Part, ...]
    source: Literal["extra_data", "stored", "reference"] = "extra_data"
    coefficient: float = 1.0
    reduce: str = "token_mean"
    gate: Part | None = None


FIELDS = {"reduce": Literal[REDUCTIONS], "epochs": Positive, "minibatches": Positive, "before": Before | None}


@dataclass(frozen=True)
class Algorithm:
    """The choices of one method. Every field but the objective is optional.

    before: reference rollouts ahead of training. sampling: the temperature of each token. combine, select, shaping,
    objective, regularizers: run in the order given; objectives add up. condition: an object with memory that writes
    feedback into prompts, before sampling (`refine`) and before training (`apply`). prepare: parts that look at a whole
    optimizer mini-batch before its update. extra: further batches in the same update. perturb: noise inside the model
    while it trains. update: the rule that makes the steps; None: epochs × minibatches of the optimizer. diagnostics: what
    else is logged.
    """

    objective: tuple[Part, ...]
    before: Before | None = None
    sampling: Any = None
    combine: tuple[Part, ...] = ()
    select: tuple[Part, ...] = ()
    condition: Any = None
    advantage: Part | None = None
    shaping: tuple[Part, ...] = ()
    prepare: tuple[Part, ...] = ()
    regularizers: tuple[Part, ...] = ()
    extra: tuple[Extra, ...] = ()
    perturb: Any = None
    update: Any = None
    diagnostics: tuple[Part, ...] = ()
    reduce: str = "token_mean"
    epochs: int = 1
    minibatches: int = 1

    def __post_init__(self):
        for mode in (self.reduce, *(extra.reduce for extra in self.extra)):
            if mode not in REDUCTIONS:
                hint, modes = nearest(mode, REDUCTIONS), ", ".join(REDUCTIONS)
                raise RecipeError(f"algorithm.reduce: no mode named {mode!r}.{hint} Modes: {modes}.")

    def at(self, stage: str) -> tuple[Part, ...]:
        """The parts of one stage, in the order they run."""
        held = getattr(self, stage)
        return held if stage not in SINGLE else () if held is None else (held,)

    @property
    def losses(self) -> tuple[Part, ...]:
        """What adds up to the loss on the rollouts."""
        return (*self.objective, *self.regularizers)

    @property
    def single_update(self) -> bool:
        """Whether the policy is the one that the updates began with whenever the loss is taken."""
        return self.update is None and self.epochs * self.minibatches == 1

    def remembering(self) -> dict[str, Part]:
        """Parts with memory by the key of their state, 'stage.name'; the condition's is kept apart."""
        held = [(stage, part) for stage in STAGES if stage != "condition" for part in self.at(stage)]
        held += [("extra", part) for extra in self.extra for part in extra.objective]
        return {f"{stage}.{catalog.name_of(part)}": part for stage, part in held if hasattr(part, "init")}


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
        if found := combinations.conflicts(algorithm):
            raise RecipeError(found)
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
            objective = (_part("objectives", item["objective"], f"{at}.objective"),)
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


def readers(algorithm: Algorithm) -> Iterator[tuple[str, Part]]:
    """(stage, part) of everything that reads arrays of the rollouts' batch."""
    for stage in STAGES:
        if stage not in WITHOUT_ARRAYS:
            yield from ((stage, part) for part in algorithm.at(stage))
    yield from (("advantage", extra.gate) for extra in algorithm.extra if extra.gate is not None)


def reasons(algorithm: Algorithm) -> dict[str, list[str]]:
    """Array → the parts that name it."""
    found: dict[str, list[str]] = {}
    for _, part in readers(algorithm):
        for name in catalog.inputs_of(part):
            found.setdefault(name, []).append(catalog.name_of(part))
    return found


def everything_named(algorithm: Algorithm) -> set[str]:
    """Every array that some part names, on the rollouts or on a second batch."""
    return required(algorithm) | {n for e in algorithm.extra for part in e.objective for n in catalog.inputs_of(part)}


def required(algorithm: Algorithm) -> set[str]:
    """Every array that the parts name. RecipeError when one is unknown, or not made by the time its part runs."""
    problems: list[str] = []
    for stage, part in readers(algorithm):
        for name in catalog.inputs_of(part):
            if text := _unreadable(algorithm, stage, part, name):
                problems.append(f"algorithm.{stage}: {catalog.name_of(part)} reads {name!r}, {text}")
    for extra in algorithm.extra:
        for part in extra.objective:
            for name in catalog.inputs_of(part):
                if text := _unreadable_beside(extra, name):
                    problems.append(f"algorithm.extra: {catalog.name_of(part)} reads {name!r}, {text}")
    if problems:
        raise RecipeError(problems)
    return set(reasons(algorithm))


def _unreadable_beside(extra: Extra, name: str) -> str:
    held = {"loss_mask", "lengths", "truncated", "group_ids", "rewards", "token_rewards", "temperatures"}
    held |= {"advantages"} if extra.gate is not None else set()
    held |= {"ref_logprobs"} if extra.source == "reference" else set()
    if name not in VOCABULARY:
        return _unknown_array(name)
    current = all(VOCABULARY[source].source == "current" or source in held for source in sources([name]))
    return "" if current and not name.endswith("_kl") else "which a second batch does not have."


def _unknown_array(name: str) -> str:
    return f"which is not in the vocabulary of llmrl/batch.py.{nearest(name, VOCABULARY)}"


def _unreadable(algorithm: Algorithm, stage: str, part: Part, name: str) -> str:
    try:
        made_by = {VOCABULARY[source].source for source in sources([name])}
    except KeyError:
        return _unknown_array(name)
    if "current" in made_by and stage in BEFORE_UPDATE:
        return f"which exists during the update only.{nearest(f'old_{base_name(name)}', VOCABULARY)}"
    if "advantage" in made_by and algorithm.advantage is None:
        return "but there is no advantage stage. Set algorithm.advantage, such as grpo."
    if "prepare" in made_by and not algorithm.prepare:
        return f"but there is no part at algorithm.prepare that writes it. {_writers(name)}"
    if base_name(name) == "anchor_rewards" and algorithm.before is None:
        return "but there are no rollouts ahead of training. Set algorithm.before: {num_samples: 8}."
    return ""


def _writers(name: str) -> str:
    return {
        "entropy_scores": "Set algorithm.prepare: hapo_scores.",
        "penalised": "Set algorithm.prepare: kl_cov_selection.",
    }.get(name, "")


def when(part: Part) -> Literal["ahead", "scored", "credited"]:
    """When a selection runs: on prompts ahead of sampling, after the scoring, or after the credit."""
    names = set(catalog.inputs_of(part))
    made_by = {VOCABULARY[source].source for source in sources(names)}
    if names == {"anchor_rewards"}:
        return "ahead"
    return "credited" if made_by & {"old", "ref", "advantage"} else "scored"


def passes(algorithm: Algorithm, online: bool = True) -> list[PassPlan]:
    """Which forward passes the trainer runs for one batch, in order, and for whom.

    With one update a batch, old_logprobs that only the loss names need no pass: they are logprobs.detach(). A part that
    looks at the mini-batch before its update needs one; for the first mini-batch it is that of 'old'.
    online: whether rollouts are sampled; RecipeError when a part needs the sampler's log-probabilities and none are.
    """
    required(algorithm)
    why: dict[str, list[str]] = {}
    early: set[str] = set()
    for stage, part in readers(algorithm):
        for source in sources(catalog.inputs_of(part)):
            if stage == "prepare" and VOCABULARY[source].source == "current":
                source = f"old_{source}"
            why.setdefault(source, []).append(catalog.name_of(part))
            if stage in (*BEFORE_UPDATE, "prepare"):
                early.add(source)
    if not online and "rollout_logprobs" in why:
        asking = ", ".join(dict.fromkeys(why["rollout_logprobs"]))
        raise RecipeError(f"algorithm: {asking} reads rollout_logprobs, which replayed data lacks.")
    made = {array: VOCABULARY[array].source for array in why}
    if "old_logprobs" not in early and algorithm.single_update and not wanted_divergences(algorithm) & {"old_kl"}:
        made.pop("old_logprobs", None)
    plans = []
    for name in ("old", "ref", "current"):
        arrays = {array for array, source in made.items() if source == name}
        if name in ("old", "ref") and f"{name}_kl" in made:  # what the divergence is taken to
            arrays.add(f"{name}_logprobs")
            why.setdefault(f"{name}_logprobs", []).extend(why[f"{name}_kl"])
        if arrays:
            told = (f"{array} for {', '.join(dict.fromkeys(why[array]))}" for array in sorted(arrays))
            plans.append(PassPlan(name, tuple(sorted(arrays)), "; ".join(told)))
    return plans


def wanted_divergences(algorithm: Algorithm) -> set[str]:
    """Which of old_kl and ref_kl some loss part names: their passes keep hidden states."""
    return sources(reasons(algorithm)) & {"old_kl", "ref_kl"}


def droppable(algorithm: Algorithm) -> bool:
    """Whether rows with zero advantage add nothing to the loss, so that they may be left out of the forward pass."""
    needed = any(getattr(catalog.unwrap(part), "needs_zero_advantage_rows", False) for part in algorithm.losses)
    return not needed and all("advantages" in catalog.inputs_of(part) for part in algorithm.losses)


def together(algorithm: Algorithm) -> bool:
    """Whether a prompt's rows have to stand in one micro-batch: some loss part compares them."""
    return any("group_ids" in catalog.inputs_of(part) for part in algorithm.losses)
