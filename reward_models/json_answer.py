"""Is the answer JSON, of the right form and, where asked, of the right content?"""

from __future__ import annotations

import re
from typing import Any

from llmrl.limits import limits
from llmrl.types import Prompt, Rollout, Score
from reward_models.format_tags import after_thoughts
from reward_models.json_schema import JsonError, canonical, parse, problem

FENCE = re.compile(r"^[ \t]{0,3}```[^\n`]{0,40}\n", re.MULTILINE)
FENCE_END = re.compile(r"^[ \t]{0,3}```[ \t]*$", re.MULTILINE)
SHOWN = 200  # characters kept in the record


@limits(seconds=20, confined=True)
def json_answer(
    prompt: Prompt,
    rollout: Rollout,
    *,
    schema: dict[str, Any] | None = None,
    compare: bool = False,
    whole: bool = False,
) -> Score:
    """1.0 if the answer is one JSON value that holds its schema and, with `compare`, equals prompt.reference, else 0.0.

    The answer is all that follows </think>, or the one fenced block in it (two blocks are no answer); with `whole`
    nothing may stand around the JSON, fences neither. The schema is the option, or else the prompt's column `schema`, an
    object or its text; without one any array or object will do. JSON is read strictly: no NaN, no number past a
    double, no key twice, at most 32 levels and 200,000 characters. Equal: the same JSON value; key order and 1 against
    1.0 do not count. Of JSON Schema 2020-12 the keywords for plain data are known, with references inside of the schema
    only; format is not checked. Raises ValueError for a schema that cannot be used, and for a missing reference.
    """
    wanted = schema if schema is not None else column_schema(prompt)
    expected = canonical(reference_value(prompt.reference)) if compare else None
    evidence: dict[str, Any] = {"schema": wanted is not None, "compared": compare}
    try:
        value = parse(json_text(rollout.text, whole))
    except JsonError as error:
        evidence |= {"valid": False, "problem": f"{error}"[:SHOWN]}
        return Score(0.0, feedback=f"The answer is no valid JSON: {error}.", evidence=evidence)
    if wanted is None and not isinstance(value, dict | list):
        evidence |= {"valid": False, "problem": "neither an array nor an object"}
        return Score(0.0, feedback="The JSON is neither an array nor an object.", evidence=evidence)
    if wanted is not None and (found := problem(value, wanted)) is not None:
        where = located(found[0])
        evidence |= {"valid": False, "problem": f"{where}: {found[1]}"}
        return Score(0.0, feedback=f"The JSON does not hold the schema at {where}: {found[1]}.", evidence=evidence)
    same = not compare or canonical(value) == expected
    feedback = "The JSON is valid" + (", and its content is right." if compare else ".")
    return Score(
        float(same),
        feedback=feedback if same else "The JSON is valid, but its content is wrong.",
        evidence=evidence | {"valid": True, "same": same if compare else None},
    )


def json_text(text: str, whole: bool) -> str:
    """The part of a response that has to be JSON. Raises JsonError for several fenced blocks."""
    text = after_thoughts(text).strip()
    if whole or (start := FENCE.search(text)) is None:
        return text
    end = FENCE_END.search(text, start.end())
    if end is None:
        raise JsonError("its fenced block has no end")
    if FENCE.search(text, end.end()):
        raise JsonError("there are several fenced blocks")
    return text[start.end() : end.start()]


def located(path: tuple[str | int, ...]) -> str:
    """'$.items[2].price' of ('items', 2, 'price')."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return ("$" + "".join(steps))[:SHOWN]


def column_schema(prompt: Prompt) -> Any:
    """The prompt's own schema, or None. Raises ValueError where it is a text that is no JSON."""
    schema = prompt.columns.get("schema")
    return parse(schema) if isinstance(schema, str) else schema


def reference_value(reference: Any) -> Any:
    """The JSON value of a reference: a text is read, other values are taken as they are. Raises ValueError."""
    if reference is None:
        raise ValueError(
            "there is no reference to compare with. Map it: data.columns.reference; or set compare to false"
        )
    return parse(reference) if isinstance(reference, str) else reference
