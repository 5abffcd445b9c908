"""Options of a part, checked against its signature: its keyword-only parameters are the only declaration there is."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from llmrl import catalog
from llmrl.errors import RecipeError, nearest
from llmrl.foreign import ours
from llmrl.problems import Problem, explain


def check_options(part: Callable[..., Any], options: dict[str, Any], where: str) -> list[str]:
    """Every problem of `options`, one sentence each: unknown, of a wrong type, or missing. `where` is a dotted key.

    What a functools.partial has set already counts as given.
    """
    return _read(part, options, where)[1]


def bind(part: Callable[..., Any], options: dict[str, Any], where: str = "options") -> Any:
    """The part with its options set: a functools.partial, or an instance where the part is a class.

    Raises RecipeError with every problem of the options.
    """
    values, problems = _read(part, options, where)
    if problems:
        raise RecipeError(problems)
    return part(**values) if inspect.isclass(catalog.unwrap(part)) else partial(part, **values)


def typed(annotation: Any, value: Any, key: str) -> tuple[Any, list[str]]:
    """(the value as the annotation has it, problems); strict, but a list serves as a tuple, as YAML has none."""
    if annotation is inspect.Parameter.empty:
        return value, []
    try:
        return TypeAdapter(annotation).validate_json(json.dumps(value), strict=True), []
    except ValidationError as error:
        return None, [f"{'.'.join((key, *p.keys))}: {told(p, annotation)}" for p in explain(error, value)]


def told(problem: Problem, annotation: Any) -> str:
    """What is wrong, also with a key of an option that is a mapping."""
    if problem.missing:
        return f"{problem.missing} is missing."
    if not problem.unknown:
        return problem.text
    known = [key for kind in (annotation, *get_args(annotation)) for key in getattr(kind, "__annotations__", {})]
    return f"this key is not known.{nearest(problem.keys[-1], known)} Keys: {', '.join(known)}."


def _read(part: Callable[..., Any], options: dict[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    declared, name = catalog.options_of(part), catalog.name_of(part)
    listing = f"Options: {', '.join(declared)}." if declared else "It has no options."
    values, problems = {}, []
    for key, value in options.items():
        if key not in declared:
            hint = nearest(key, declared) or ours(key)
            problems.append(f"{where}.{key} is not an option of {name}.{hint} {listing}")
            continue
        values[key], wrong = typed(declared[key].annotation, value, f"{where}.{key}")
        problems += wrong
    given = set(options) | set(getattr(part, "keywords", {}))
    required = [key for key, p in declared.items() if p.default is inspect.Parameter.empty and key not in given]
    return values, problems + [f"{where}.{key} is missing: {name} has no default for it." for key in required]
