"""A recipe file and its overrides → one checked Run and its stages. Light to import: no torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from llmrl import catalog
from llmrl.config import Data, Evaluations, Named, Rollout, Run, Scoring, Section, Stage, Training
from llmrl.errors import CatalogError, RecipeError, nearest
from llmrl.problems import explain, section_at, unknown_key
from llmrl.recipe_file import Dumper, parse_overrides, read, shown
from llmrl.recipe_tree import Keys, Tree, items_of, overlay

CHECKOUT = Path(__file__).resolve().parents[1] / "recipes"
RECIPES = CHECKOUT if CHECKOUT.is_dir() else Path(sys.prefix) / "share" / "llmrl" / "recipes"
SECTIONS = tuple(name for name in Stage.model_fields if name != "name")  # what a stage can lay over the recipe


class StageConfig(Section):
    """Everything that one stage runs with. origins: dotted key → where it was set, as in `Recipe.origins`."""

    name: str
    data: Data
    extra_data: Data | None = None
    algorithm: dict[str, Any]
    scorers: list[Named] = []
    scoring: Scoring = Scoring()
    rollout: Rollout = Rollout()
    training: Training = Training()
    evaluation: Evaluations = {}
    origins: dict[str, str] = {}


@dataclass(frozen=True)
class Recipe:
    """A recipe that its schema has accepted; the options of algorithm parts and scorers are checked by `options`.

    stages: at least one. origins: dotted key → 'file:line', 'override' or 'default'. text: the whole recipe as YAML,
    defaults and overrides included, which reads back to the same run.
    """

    path: Path
    run: Run
    stages: list[StageConfig]
    origins: dict[str, str]

    @property
    def text(self) -> str:
        return "".join(f"{line}\n" for line, _ in _lines(_values(self.run)))

    @property
    def annotated(self) -> str:
        """`text` with the place that set each value as a comment."""
        lines = [(line, self.origins.get(".".join(keys), "")) for line, keys in _lines(_values(self.run))]
        width = min(60, max(len(line) for line, _ in lines))
        return "".join(f"{line:<{width}}  # {origin}\n" if origin else f"{line}\n" for line, origin in lines)


def find(name: str | Path) -> Path:
    """The recipe file of that path, or of that name below recipes/. RecipeError with the nearest name."""
    path = Path(name)
    if path.is_file():
        return path
    files = sorted(RECIPES.rglob("*.yaml"))
    exact = [f for f in files if str(name) == str(f.relative_to(RECIPES).with_suffix(""))]
    matches = exact or [f for f in files if str(name) in (f.stem, f.name)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise RecipeError(f"{name}: several recipes have that name: {', '.join(map(shown, matches))}. Give the path.")
    names = [f.stem for f in files]
    raise RecipeError(f"{name}: no such file, and no recipe of that name.{nearest(path.stem, names)} {_known(names)}")


def _known(names: list[str]) -> str:
    return f"Recipes: {', '.join(names)}." if names else f"There are none in {shown(RECIPES)}."


def resolve(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, compose, override and check a recipe.

    path: a file, or a name below recipes/. overrides: 'key.sub=value', '--key.sub=value' or '--key.sub', 'value'.
    Raises RecipeError with every problem of the recipe, each with its file, line and column.
    """
    file = find(path)
    problems: list[str] = []
    changes = parse_overrides(overrides)
    tree = _switched_off(overlay(read(file, RECIPES, problems), changes))
    if tree.values.get("name") is None:
        tree = overlay(tree, Tree({"name": file.stem}))
    run = _checked(Run, tree, file, problems)
    stage_trees = _stage_trees(tree)
    stages = [_checked(StageConfig, stage, file, problems) for stage in stage_trees]
    problems += _model_problems(tree) + _stage_names(tree) + [p for stage in stage_trees for p in _part_names(stage)]
    problems += _without_effect(changes, stage_trees)
    if problems:
        raise RecipeError(dict.fromkeys(problems))
    located = [s.model_copy(update={"origins": _origins(t, s)}) for s, t in zip(stages, stage_trees, strict=True)]
    return Recipe(file, run, located, _origins(tree, run))


def _stage_trees(tree: Tree) -> list[Tree]:
    """What each stage is made of: its sections over the recipe's. Items that are no stage are left to the schema."""
    own = tree.only(SECTIONS)
    stages = tree.values.get("stages") or []
    if not stages:
        algorithm = own.values.get("algorithm")
        name = algorithm.get("name") if isinstance(algorithm, dict) else None
        return [overlay(own, Tree({"name": name if isinstance(name, str) else "train"}))]
    names = [name for name, item in items_of(stages) if isinstance(item, dict) and isinstance(item.get("name"), str)]
    changes = [tree.below("stages", name) for name in names]
    given = [change.only([s for s in SECTIONS if change.values.get(s) is not None]) for change in changes]
    return [overlay(overlay(own, g), Tree({"name": name})) for g, name in zip(given, names, strict=True)]


def _switched_off(tree: Tree) -> Tree:
    """The tree less what its stages say of evaluations that are null for the whole run."""
    off = {name for name, value in _mapping(tree.values.get("evaluation")).items() if value is None}
    stages = tree.values.get("stages")
    if not off or not isinstance(stages, list):
        return tree

    def kept(stage: Any) -> Any:
        own = _mapping(stage).get("evaluation")
        return (
            stage | {"evaluation": {n: e for n, e in own.items() if n not in off}} if isinstance(own, dict) else stage
        )

    marks = {k: m for k, m in tree.marks.items() if (k[0], *k[2:3]) != ("stages", "evaluation") or not off & {*k[3:4]}}
    return Tree(tree.values | {"stages": [kept(stage) for stage in stages]}, marks)


def _at(tree: Tree, keys: Keys, file: str = "") -> tuple[str, str]:
    """(place, dotted key as written) of a key, or of the nearest one above it that was written."""
    for end in range(len(keys), 0, -1):
        if mark := tree.marks.get(keys[:end]):
            return mark.place, ".".join([mark.key, *keys[end:]])
    return file, ".".join(keys)


def _checked(schema: type[Section], tree: Tree, file: Path, problems: list[str]) -> Any:
    """The validated section, or None with its problems appended."""
    try:
        return schema.model_validate(tree.values)
    except ValidationError as error:
        for keys, text, missing, unknown in explain(error, tree.values):
            place, key = _at(tree, keys, shown(file))
            if missing:
                about = section_at(schema, keys).model_fields[missing].description
                stage = f" for stage {tree.values['name']!r}" if schema is StageConfig and not keys else ""
                key = f"{key}.{missing}" if key else missing
                problems.append(f"{place}: {key} is missing{stage}{f': {about}' if about else ''}.")
            elif unknown:
                problems.append(f"{place}: {key} {unknown_key(schema, keys)}")
            else:
                problems.append(f"{place}: {key}: {text}")
    return None


def _model_problems(tree: Tree) -> list[str]:
    model = tree.values.get("model")
    if not isinstance(model, dict):
        return []
    place, key = _at(tree, ("model",))
    given = [name for name in ("path", "make") if model.get(name) is not None]
    if len(given) == 1:
        return _name_problems(tree, ("model", "make"), "models", model.get("make"))
    found = "both path and make" if given else "neither path nor make"
    move = "Set one of them to null." if given else "path: a folder or a hub id; make: tiny."
    return [f"{place}: {key}: found {found}, expected exactly one. {move}"]


def _stage_names(tree: Tree) -> list[str]:
    names = [name for name, _ in items_of(tree.values.get("stages"))]
    twice = sorted({name for name in names if names.count(name) > 1})
    return [f"{_at(tree, ('stages', n))[0]}: stages: two are named {n!r}. Give each its own name." for n in twice]


def _part_names(stage: Tree) -> list[str]:
    """Problems with the names in a stage that the catalog has to hold; nothing that they name is imported."""
    rollout, data, algorithm = (_mapping(stage.values.get(name)) for name in ("rollout", "data", "algorithm"))
    named = [(("rollout", "engine"), "engines", rollout.get("engine")), *_scorers(stage.values, ())]
    if isinstance(data.get("source"), dict):  # a plain string may be a file or a hub id
        named.append((("data", "source"), "sources", data["source"]))
    if "name" in algorithm:
        named.append((("algorithm", "name"), "algorithms", algorithm["name"]))
    found = []
    for name, evaluation in _mapping(stage.values.get("evaluation")).items():
        if evaluation is None:
            continue
        keys, values = ("evaluation", name), _mapping(evaluation)
        named += [((*keys, "benchmark"), "benchmarks", values.get("benchmark")), *_scorers(values, keys)]
        if values.get("benchmark") is None and values.get("data") is None:
            place, key = _at(stage, keys)
            found.append(f"{place}: {key}: found neither benchmark nor data, expected one of them.")
    return [p for keys, kind, value in named for p in _name_problems(stage, keys, kind, value)] + found


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _scorers(values: dict[str, Any], above: Keys) -> list[tuple[Keys, str, Any]]:
    scorers = values.get("scorers")
    return [((*above, "scorers", k), "scorers", v) for k, v in items_of(scorers if isinstance(scorers, list) else [])]


def _name_problems(tree: Tree, keys: Keys, kind: str, value: Any) -> list[str]:
    place, key = _at(tree, keys)
    name = value.get("name") if isinstance(value, dict) else value
    if isinstance(value, dict) and not isinstance(name, str):
        return [f"{place}: {key}: found options without a name, expected {{name: ..., <option>: ...}}."]
    if not isinstance(name, str) or ":" in name:
        return []
    try:
        if name not in catalog.table(kind):
            catalog.get(kind, name)
    except CatalogError as error:
        return [f"{place}: {key}: {error}"]
    return []


def _without_effect(changes: Tree, stages: list[Tree]) -> list[str]:
    """Overrides of the recipe's own sections that every stage sets again."""
    leaves = [k for k in changes.marks if not any(o[: len(k)] == k and o != k for o in changes.marks)]
    return [
        f"override {'.'.join(keys)}: every stage sets it again, so it would change nothing. Write "
        f"{' or '.join('.'.join(('stages', s.values['name'], *keys)) for s in stages)}."
        for keys in leaves
        if keys[0] in SECTIONS and stages and all(_at(s, keys)[0] != "override" for s in stages)
    ]


def _values(section: Section) -> dict[str, Any]:
    values = section.model_dump(exclude={"origins", "stages"})
    stages = [stage.model_dump(exclude_defaults=True) for stage in getattr(section, "stages", [])]
    return values | ({"stages": stages} if stages else {})


def _origins(tree: Tree, section: Section) -> dict[str, str]:
    defaults = {".".join(keys): "default" for _, keys in _lines(_values(section)) if keys}
    return defaults | {".".join(keys): mark.origin for keys, mark in tree.marks.items()}


def _lines(values: dict[str, Any], above: Keys = (), indent: str = "") -> Iterator[tuple[str, Keys]]:
    """(line of YAML, the key whose value it holds); the key is empty on lines that only open a mapping or a list."""
    for key, value in values.items():
        keys, label = (*above, key), f"{indent}{_flow(key)}:"
        if isinstance(value, dict) and value:
            yield label, ()
            yield from _lines(value, keys, indent + "  ")
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            yield label, ()
            for name, item in items_of(value):
                if not isinstance(item, dict):
                    yield f"{indent}  - {_flow(item)}", (*keys, name)
                    continue
                for i, (line, inner) in enumerate(_lines(item, (*keys, name), indent + "    ")):
                    yield (f"{indent}  - {line.strip()}" if i == 0 else line), inner
        else:
            yield f"{label} {_flow(value)}", keys


def _flow(value: Any) -> str:
    text = yaml.dump(value, Dumper=Dumper, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return text.removesuffix("...\n").strip()
