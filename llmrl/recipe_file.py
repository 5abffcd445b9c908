"""YAML files and overrides to trees: own rules for plain words, places kept, `base:` composed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from llmrl.errors import RecipeError
from llmrl.recipe_tree import Keys, Mark, Tree, overlay
from llmrl.redaction import SECRET_KEY, secret_in

MAX_VALUES = 10_000  # aliases of aliases expand exponentially; no recipe comes near this
MAX_DEPTH = 32
MAX_BYTES = 1 << 16
TAG = "tag:yaml.org,2002:"
SCALARS = {  # YAML 1.2's core schema: yes, no, on and off are words, 1e-5 is a number, 012 is twelve
    "null": (r"(?:~|null|Null|NULL|)$", ["~", "n", "N", ""], lambda text: None),
    "bool": (r"(?:true|True|TRUE|false|False|FALSE)$", list("tTfF"), lambda text: text.lower() == "true"),
    "int": (r"[-+]?[0-9]+$", list("-+0123456789"), int),
    "float": (
        r"(?:[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan)$",
        list("-+.0123456789"),
        lambda text: float(text.replace(".inf", "inf").replace(".nan", "nan")),
    ),
    "merge": (r"<<$", ["<"], str),
    "str": (r"(?!)", [], str),
}


class Loader(yaml.SafeLoader):
    """Composes nodes only; what a plain word means is SCALARS' business."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}


class Dumper(yaml.SafeDumper):
    """Quotes every string that YAML 1.1 or these rules would read as something else."""


for _name, (_pattern, _first, _) in SCALARS.items():
    for _kind in (Loader, Dumper):
        _kind.add_implicit_resolver(TAG + _name, re.compile(_pattern), _first)
Dumper.add_representer(  # one line each, so that a comment can follow
    str, lambda dumper, text: dumper.represent_scalar(TAG + "str", text, style='"' if "\n" in text else None)
)


def is_number(text: str) -> bool:
    """Whether a plain word of a recipe is read as a number."""
    return any(re.match(SCALARS[kind][0], text) for kind in ("int", "float"))


# what would run code that comes with a model or a data set: no recipe, and no base of one, can ask for it
REFUSED = {"trust_remote_code", "allow_pickle", "weights_only", "use_safetensors"}


class _Reader:
    """One document's nodes to values; problems that do not stop the reading are collected.

    above: the keys under which the document stands.
    """

    def __init__(self, file: str, problems: list[str], above: Keys):
        self.file, self.problems, self.above, self.marks, self.count = file, problems, above, {}, 0

    def place(self, node: yaml.Node) -> str:
        return f"{self.file}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"

    def mark(self, node: yaml.Node, keys: Keys) -> None:
        start = node.start_mark
        self.marks[keys] = Mark(self.file, start.line + 1, start.column + 1, ".".join(keys))

    def value(self, node: yaml.Node, keys: Keys) -> Any:
        self.count += 1
        if self.count > MAX_VALUES:
            raise RecipeError(f"{self.file}: expands to more than {MAX_VALUES} values. Use fewer aliases (*name).")
        if len(keys) > MAX_DEPTH:
            raise RecipeError(
                f"{self.place(node)}: nested more than {MAX_DEPTH} deep, or an anchor holds an alias of itself."
            )
        kind = node.tag.removeprefix(TAG)
        if kind not in (*SCALARS, "map", "seq"):
            tag = node.tag.replace(TAG, "!!")
            raise RecipeError(f"{self.place(node)}: found the tag {tag}, expected a plain value.")
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, keys)
        if isinstance(node, yaml.SequenceNode):
            return [self.item(child, (*keys, _node_key(i, child))) for i, child in enumerate(node.value)]
        try:
            value = SCALARS[kind][2](node.value)
        except (KeyError, ValueError):
            raise RecipeError(f"{self.place(node)}: {node.value!r:.60} cannot be read as {kind}.") from None
        if value is not None and not isinstance(value, bool):
            self.refuse_secret(node, keys, node.value)
        return value

    def refuse_secret(self, node: yaml.Node, keys: Keys, value: str) -> None:
        """A secret would be kept in the run's folder and shown to whoever gets the recipe; so it is not read at all."""
        at = (*self.above, *keys)
        if secret_in(value) or (value and at and SECRET_KEY.search(at[-1])):
            self.problems.append(
                f"{self.place(node)}: {'.'.join(at) or 'a value'} holds what looks like a secret; expected none in a recipe. "
                "Export it as an environment variable (HF_TOKEN for the hub, WANDB_API_KEY for W&B, any name that a "
                "judge's service.key_env gives), take it out here, and revoke it if others have seen this file."
            )

    def item(self, node: yaml.Node, keys: Keys) -> Any:
        self.mark(node, keys)
        return self.value(node, keys)

    def mapping(self, node: yaml.MappingNode, keys: Keys) -> dict[str, Any]:
        values: dict[str, Any] = {}
        merges = [v for k, v in node.value if k.tag == TAG + "merge"]
        for source in reversed([s for m in merges for s in (m.value if isinstance(m, yaml.SequenceNode) else [m])]):
            if isinstance(source, yaml.MappingNode):
                values |= self.value(source, keys)
            else:
                self.problems.append(f"{self.place(source)}: << merges mappings; expected an alias of one.")
        lines: dict[str, int] = {}
        for key, child in node.value:
            if key.tag == TAG + "merge":
                continue
            if not isinstance(key, yaml.ScalarNode):
                self.problems.append(f"{self.place(key)}: a key has to be a plain word.")
                continue
            name = key.value
            if name in lines:
                here = ".".join((*keys, name))
                self.problems.append(f"{self.place(key)}: {here} is set twice, first in line {lines[name]}.")
                continue
            lines[name] = key.start_mark.line + 1
            self.refuse_secret(key, (*keys, "(a key)"), name)
            if name in REFUSED:
                self.problems.append(refused(self.place(key), (*self.above, *keys, name)))
            if name in values:  # merged in before; what it held is replaced
                self.marks = {k: m for k, m in self.marks.items() if k[: len(keys) + 1] != (*keys, name)}
            self.mark(key, (*keys, name))
            values[name] = self.value(child, (*keys, name))
        return values


def _node_key(index: int, node: yaml.Node) -> str:
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    names = [v.value for k, v in pairs if k.value == "name" and isinstance(v, yaml.ScalarNode)]
    return names[0] if names else str(index)


def refused(place: str, keys: Keys) -> str:
    """The problem with a key of REFUSED."""
    return (
        f"{place}: {'.'.join(keys)} cannot be set: weights are read from safetensors only, and code that comes with a "
        "model or a data set never runs. Convert the model to an architecture of transformers, or leave the key out."
    )


def parse(text: str | bytes, file: str, problems: list[str], above: Keys = ()) -> Any:
    """The value of one YAML document, which stands under the keys `above`, and its marks: (value, marks).

    Secrets and keys of REFUSED are problems. RecipeError where it is not YAML, or larger than any recipe.
    """
    if len(text) > MAX_BYTES:
        raise RecipeError(
            f"{file}: found {len(text):,} bytes, expected at most {MAX_BYTES:,}. Data belong in data.source."
        )
    reader = _Reader(file, problems, above)
    try:
        node = Loader(text).get_single_node()
        return (None if node is None else reader.value(node, ())), reader.marks
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        context = f"{error.context}: " if error.context else ""
        raise RecipeError(f"{file}{at}: not YAML: {context}{error.problem}.") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{file}: not YAML: {' '.join(str(error).split())}.") from error
    except RecursionError:
        raise RecipeError(f"{file}: nested too deeply, or an anchor holds an alias of itself.") from None


def read(path: Path, shared: Path, problems: list[str], chain: tuple[Path, ...] = ()) -> Tree:
    """The recipe file laid over the files its `base` names, each of them read in the same way.

    A base is sought beside the file, then in `shared`. Problems that do not stop the reading are appended.
    RecipeError: no such file, not YAML, not a mapping, a cycle.
    """
    file, path = shown(path), path.resolve()
    if path in chain:
        raise RecipeError(f"{file}: base goes in a circle: {' → '.join(shown(p) for p in (*chain, path))}.")
    values, marks = parse(path.read_bytes(), file, problems)
    if not isinstance(values, dict):
        found = "nothing" if values is None else f"a {type(values).__name__}"
        raise RecipeError(f"{file}:1: found {found}, expected a mapping of sections: model, data, algorithm, ...")
    bases, mark = values.pop("base", []), marks.get(("base",))
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) and "\0" not in base for base in bases):
        raise RecipeError(f"{mark.place}: base: expected a file or a list of files.")
    result = Tree()
    for base in bases:
        places = [folder / base for folder in (path.parent, shared)]
        found = next((p for p in places if p.is_file()), None)
        if found is None:
            raise RecipeError(f"{mark.place}: base {base!r} is not a file. Sought: {', '.join(map(shown, places))}.")
        result = overlay(result, read(found, shared, problems, (*chain, path)))
    return overlay(result, Tree(values, {k: m for k, m in marks.items() if k[0] != "base"}))


def shown(path: Path) -> str:
    """The path as a person would type it: relative to the working directory where it lies below it."""
    absolute = path.resolve()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(path)


def parse_overrides(words: Sequence[str]) -> Tree:
    """['a.b=1', '--a.c=2', '--a.d', '3'] as a tree, read by the rules of a file. RecipeError with every problem."""
    result, problems, rest = Tree(), [], list(words)
    while rest:
        word = rest.pop(0)
        key, equals, text = word.removeprefix("--").partition("=")
        if word.startswith("+"):
            problems.append(f"override {word!r}: + is not needed here; write {word.lstrip('+')}.")
            continue
        if not equals and word.startswith("--") and rest and not rest[0].startswith("--"):
            equals, text = "=", rest.pop(0)
        if not equals or not all(key.split(".")):
            problems.append(f"override {word!r}: expected key.sub=value, such as training.steps=100.")
            continue
        keys = tuple(key.split("."))
        try:
            problems += [refused("override", keys[: i + 1]) for i, k in enumerate(keys) if k in REFUSED]
            value, inner = parse(text, f"override {key}", problems, keys)
        except RecipeError as error:
            problems += error.problems
            continue
        marks = {keys[: i + 1]: Mark("override", 0, 0, ".".join(keys[: i + 1])) for i in range(len(keys))}
        marks |= {keys + k: Mark("override", 0, 0, ".".join(keys + k)) for k in inner}
        for step in reversed(keys):
            value = {step: value}
        result = overlay(result, Tree(value, marks))
    if problems:
        raise RecipeError(problems)
    return result
