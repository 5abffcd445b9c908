"""What pydantic finds wrong, as one sentence a problem: what was found, what was expected, the next move."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from llmrl.config import Run
from llmrl.errors import RecipeError, nearest
from llmrl.foreign import ours
from llmrl.recipe_file import is_number
from llmrl.recipe_tree import Keys, item_key

EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "a string",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "dataclass_type": "a mapping",
    "list_type": "a list",
    "tuple_type": "a list",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
}


class Problem(NamedTuple):
    """One finding. `keys` lead to the value, or to the mapping that lacks `missing`; `text` follows the key's name."""

    keys: Keys
    text: str
    missing: str | None = None
    unknown: bool = False


def explain(error: ValidationError, value: Any) -> Iterator[Problem]:
    """Every problem of a validation, in order; the branches of a union are told as one."""
    wrong: dict[Keys, tuple[Any, list[str]]] = {}
    for found in error.errors(include_url=False):
        keys, inner = _follow(value, found["loc"])
        if found["type"] == "missing":
            yield Problem(keys, "", missing=str(found["loc"][-1]))
        elif found["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            yield Problem(keys, "", unknown=True)
        elif found["type"] == "secret":  # a validator's own: the value is not to be shown
            yield Problem(keys, found["msg"])
        elif found["type"] == "value_error":  # a validator's own, with the value in it
            yield Problem(keys, str(found["ctx"]["error"]))
        else:
            known = EXPECTED.get(found["type"])
            expected = (
                known.format_map(found.get("ctx", {})) if known else found["msg"].removeprefix("Input should be ")
            )
            wrong.setdefault(keys, (inner, []))[1].append(expected)
    for keys, (inner, expected) in wrong.items():
        quotes = isinstance(inner, str) and is_number(inner) and any("number" in e for e in expected)
        hint = " Take the quotes off." if quotes else ""
        yield Problem(keys, f"found {described(inner)}, expected {' or '.join(dict.fromkeys(expected))}.{hint}")


def _follow(value: Any, loc: tuple[int | str, ...]) -> tuple[Keys, Any]:
    """As far along `loc` as the value goes: pydantic appends the branch of a union to it."""
    keys: list[str] = []
    for step in loc:
        if isinstance(value, dict) and step in value:
            keys.append(str(step))
            value = value[step]
        elif isinstance(value, list | tuple) and isinstance(step, int) and step < len(value):
            keys.append(item_key(step, value[step]))
            value = value[step]
        else:
            break
    return tuple(keys), value


def described(value: Any) -> str:
    """A value as an error names it: 'ten' (a string), true, nothing (null), a list, 1.5."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"{value!r} (a string)"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return "nothing (null)" if value is None else repr(value)


def validated(schema: type[BaseModel], values: Any, above: str = "", more: Iterable[str] = ()) -> Any:
    """The section out of plain values that stand outside of a recipe. RecipeError with every problem.

    above: the dotted key of the section, '' for none. more: keys that the section's own stand beside.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        problems = []
        for keys, text, missing, unknown in explain(error, values):
            key = ".".join(k for k in (above, *keys) if k)
            if missing:
                problems.append(f"{key}.{missing} is missing.".lstrip("."))
            elif unknown:
                known = [*section_at(schema, keys[:-1]).model_fields, *(() if keys[:-1] else more)]
                problems.append(f"{key} is not a key here.{nearest(keys[-1], known)} Keys: {', '.join(known)}.")
            else:
                problems.append(f"{key}: {text}")
        raise RecipeError(problems) from error


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section behind `Section`, `Section | None`, `dict[str, Section]` or `list[Section]`."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for a in get_args(annotation) if (found := section_of(a))), None)


def section_at(schema: type[BaseModel], keys: Keys) -> type[BaseModel]:
    """The section that `keys` lead to."""
    for key in keys:
        if key in schema.model_fields:  # else the name of an evaluation or of a stage
            schema = section_of(schema.model_fields[key].annotation) or schema
    return schema


def leaves(schema: type[BaseModel], before: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """(dotted key, field) of everything a recipe can set; a name that the recipe gives stands as <name>."""
    for key, info in schema.model_fields.items():
        inner = section_of(info.annotation)
        if inner is None:
            yield before + key, info
        else:
            named = get_origin(info.annotation) in (dict, list)
            yield from leaves(inner, f"{before}{key}.<name>." if named else f"{before}{key}.")


def unknown_key(schema: type[BaseModel], keys: Keys) -> str:
    """What to say of a key that its section does not have: where it belongs, or the nearest right name."""
    *section, key = keys
    known = section_at(schema, tuple(section)).model_fields
    places = [dotted for dotted, _ in leaves(Run) if dotted.split(".")[-1] == key and not dotted.startswith("stages.")]
    hint = f" Here it is {' or '.join(places)}." if places else ours(key) or nearest(key, known)
    return f"is not a key of {'.'.join(section) or 'a recipe'}.{hint} Keys: {', '.join(known)}."
