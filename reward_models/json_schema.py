"""JSON read strictly, and checked against a schema: the part of JSON Schema 2020-12 that describes plain data.

Nothing is fetched: a $ref points into the schema itself. A keyword that is not understood is an error, never ignored.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

DEEPEST = 32  # levels of arrays and objects
LONGEST = 200_000  # characters of a document
LONGEST_MATCHED = 10_000  # characters of a string that a pattern is tried on; longer ones match none

BRACKET = re.compile(r'"(?:[^"\\]|\\.)*+"?+|[\[\]{}]', re.DOTALL)
NOTES = frozenset(
    "$schema $id $comment $defs definitions $anchor title description default examples deprecated readOnly writeOnly "
    "format contentEncoding contentMediaType".split()
)
Path = tuple[str | int, ...]
Problem = tuple[Path, str] | None  # where in the document, and which keyword it fails


class JsonError(ValueError):
    """A text that is not strict JSON, or is too large."""


def parse(text: str) -> Any:
    """The value of a JSON text. Raises JsonError, also for NaN, numbers past a double, doubled keys and bombs."""
    if len(text) > LONGEST:
        raise JsonError(f"it has {len(text)} characters; at most {LONGEST} are read")
    if depth(text) > DEEPEST:
        raise JsonError(f"it is nested more than {DEEPEST} levels deep")
    try:
        return json.loads(text, object_pairs_hook=once, parse_constant=refused, parse_float=finite)
    except JsonError:
        raise
    except json.JSONDecodeError as error:
        raise JsonError(f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    except ValueError:  # an integer of thousands of digits
        raise JsonError("it holds a number that is too long") from None


def depth(text: str) -> int:
    """The deepest nesting of brackets outside of strings."""
    deepest = level = 0
    for match in BRACKET.finditer(text):
        token = match.group()
        if token in ("[", "{"):
            level += 1
            deepest = max(deepest, level)
        elif token in ("]", "}"):
            level -= 1
    return deepest


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as an object; a key twice would let two readers see two values."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise JsonError("it names a key twice in one object")
    return found


def refused(constant: str) -> Any:
    """NaN and Infinity are Python's, not JSON's."""
    raise JsonError(f"{constant} is no JSON value")


def finite(digits: str) -> float:
    """A number with a fraction or an exponent."""
    value = float(digits)
    if not math.isfinite(value):
        raise JsonError("it holds a number that is too large")
    return value


def canonical(value: Any) -> str:
    """One string for equal JSON values: key order and 1 against 1.0 do not count, true is not 1."""
    return json.dumps(plain(value), sort_keys=True)


def plain(value: Any) -> Any:
    """The value with whole floats as integers."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [plain(one) for one in value]
    return {key: plain(one) for key, one in value.items()} if isinstance(value, dict) else value


def problem(value: Any, schema: Any) -> Problem:
    """Where a parsed value fails the schema first, and at which keyword; None where it holds.

    Raises ValueError for a schema that is malformed, names a keyword that is not supported or refers to itself
    without end.
    """
    return Checker(schema).check(value, schema, ())


class Checker:
    """One check of one document: remembers what it has found, so that references cannot multiply the work."""

    def __init__(self, root: Any) -> None:
        self.root = root
        self.known: dict[tuple[int, int], Problem] = {}
        self.under_way: set[tuple[int, int]] = set()

    def check(self, value: Any, schema: Any, path: Path) -> Problem:
        """The first problem of `value`, which stands at `path`."""
        if isinstance(schema, bool):
            return None if schema else (path, "false")
        if not isinstance(schema, dict):
            raise ValueError(f"schema: {schema!r:.80} is no schema; expected an object, true or false")
        key = (id(value), id(schema))
        if key in self.under_way:
            raise ValueError("schema: a $ref leads back to itself; expected it to go down into the document")
        if key not in self.known:
            self.under_way.add(key)
            self.known[key] = self.first(value, schema)
            self.under_way.remove(key)
        found = self.known[key]
        return found and (path + found[0], found[1])

    def first(self, value: Any, schema: dict[str, Any]) -> Problem:
        """The first problem, with the path counted from `value`."""
        for keyword, wanted in schema.items():
            if keyword in NOTES:
                continue
            rule = RULES.get(keyword)
            if rule is None:
                raise ValueError(f"schema: keyword {keyword!r} is not supported. Supported: {', '.join(RULES)}.")
            try:
                found = rule(self, value, wanted, schema)
            except (TypeError, AttributeError, ArithmeticError, re.error) as error:
                raise ValueError(f"schema: {keyword} is {wanted!r:.80}, which does not work: {error}") from error
            if found is not None:
                return found if isinstance(found, tuple) else ((), keyword)
        return None

    def resolved(self, reference: Any) -> Any:
        """The part of the schema that a local reference points to."""
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            raise ValueError(f"schema: $ref {reference!r:.80} is not supported; expected one into the schema, '#/...'")
        found = self.root
        for step in reference.split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and step.isdecimal() and int(step) < len(found):
                found = found[int(step)]
            elif isinstance(found, dict) and step in found:
                found = found[step]
            else:
                raise ValueError(f"schema: $ref {reference!r:.80} points to nothing")
        return found


# A rule takes (checker, value, what the keyword says, the schema around it) and gives None where the value holds,
# False where it fails here, or the problem deeper inside.
Rule = Callable[[Checker, Any, Any, dict[str, Any]], "Problem | bool"]

TYPES: dict[str, Callable[[Any], bool]] = {
    "null": lambda v: v is None,
    "boolean": lambda v: isinstance(v, bool),
    "string": lambda v: isinstance(v, str),
    "array": lambda v: isinstance(v, list),
    "object": lambda v: isinstance(v, dict),
    "number": lambda v: is_number(v),
    "integer": lambda v: is_number(v) and (isinstance(v, int) or v.is_integer()),
}


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def holds(condition: bool) -> bool | None:
    return None if condition else False


def of_type(checker: Checker, value: Any, wanted: Any, schema: dict[str, Any]) -> bool | None:
    names = [wanted] if isinstance(wanted, str) else wanted
    if unknown := [name for name in names if name not in TYPES]:
        raise ValueError(f"schema: type {unknown[0]!r:.80} is unknown; expected one of {', '.join(TYPES)}")
    return holds(any(TYPES[name](value) for name in names))


def when(kind: str, test: Callable[[Any, Any], bool]) -> Rule:
    """A rule for values of one type; values of other types hold."""
    return lambda checker, value, wanted, schema: holds(not TYPES[kind](value) or test(value, wanted))


def properties(checker: Checker, value: Any, wanted: Any, schema: dict[str, Any]) -> Problem:
    given = value if isinstance(value, dict) else {}
    inside = (checker.check(given[name], part, (name,)) for name, part in wanted.items() if name in given)
    return next((found for found in inside if found), None)


def additional_properties(checker: Checker, value: Any, wanted: Any, schema: dict[str, Any]) -> Problem:
    if not isinstance(value, dict):
        return None
    patterns = [re.compile(one) for one in schema.get("patternProperties", {})]
    extra = [k for k in value if k not in schema.get("properties", {}) and not any(matches(p, k) for p in patterns)]
    return next((found for key in extra if (found := checker.check(value[key], wanted, (key,)))), None)


def pattern_properties(checker: Checker, value: Any, wanted: Any, schema: dict[str, Any]) -> Problem:
    given = value.items() if isinstance(value, dict) else ()
    inside = (checker.check(v, part, (k,)) for p, part in wanted.items() for k, v in given if matches(re.compile(p), k))
    return next((found for found in inside if found), None)


def items(checker: Checker, value: Any, wanted: Any, schema: dict[str, Any]) -> Problem:
    if not isinstance(value, list):
        return None
    start = len(schema.get("prefixItems", ()))
    inside = (checker.check(one, wanted, (at,)) for at, one in enumerate(value[start:], start))
    return next((found for found in inside if found), None)


def prefix_items(checker: Checker, value: Any, wanted: Any, schema: dict[str, Any]) -> Problem:
    pairs = zip(value if isinstance(value, list) else (), wanted, strict=False)
    inside = (checker.check(one, part, (at,)) for at, (one, part) in enumerate(pairs))
    return next((found for found in inside if found), None)


def contains(checker: Checker, value: Any, wanted: Any, schema: dict[str, Any]) -> bool | None:
    if not isinstance(value, list):
        return None
    num = sum(checker.check(one, wanted, ()) is None for one in value)
    return holds(schema.get("minContains", 1) <= num <= schema.get("maxContains", math.inf))


def one_of(checker: Checker, value: Any, wanted: Any, schema: dict[str, Any]) -> bool | None:
    return holds(sum(checker.check(value, part, ()) is None for part in wanted) == 1)


def all_of(checker: Checker, value: Any, wanted: Any, schema: dict[str, Any]) -> Problem:
    return next((found for part in wanted if (found := checker.check(value, part, ()))), None)


def conditional(checker: Checker, value: Any, wanted: Any, schema: dict[str, Any]) -> Problem:
    branch = "then" if checker.check(value, wanted, ()) is None else "else"
    return checker.check(value, schema.get(branch, True), ())


def dependent_required(checker: Checker, value: Any, wanted: Any, schema: dict[str, Any]) -> bool | None:
    given = value if isinstance(value, dict) else {}
    return holds(all(name in given for key, names in wanted.items() if key in given for name in names))


def matches(pattern: re.Pattern[str], text: str) -> bool:
    return len(text) <= LONGEST_MATCHED and pattern.search(text) is not None


RULES: dict[str, Rule] = {
    "type": of_type,
    "enum": lambda c, v, w, s: holds(canonical(v) in [canonical(one) for one in w]),
    "const": lambda c, v, w, s: holds(canonical(v) == canonical(w)),
    "required": when("object", lambda v, w: all(name in v for name in w)),
    "properties": properties,
    "patternProperties": pattern_properties,
    "additionalProperties": additional_properties,
    "propertyNames": lambda c, v, w, s: holds(not isinstance(v, dict) or all(c.check(k, w, ()) is None for k in v)),
    "minProperties": when("object", lambda v, w: len(v) >= w),
    "maxProperties": when("object", lambda v, w: len(v) <= w),
    "dependentRequired": dependent_required,
    "items": items,
    "prefixItems": prefix_items,
    "contains": contains,
    "minContains": lambda c, v, w, s: None,  # contains reads it
    "maxContains": lambda c, v, w, s: None,
    "minItems": when("array", lambda v, w: len(v) >= w),
    "maxItems": when("array", lambda v, w: len(v) <= w),
    "uniqueItems": when("array", lambda v, w: not w or len({canonical(one) for one in v}) == len(v)),
    "minLength": when("string", lambda v, w: len(v) >= w),
    "maxLength": when("string", lambda v, w: len(v) <= w),
    "pattern": when("string", lambda v, w: matches(re.compile(w), v)),
    "minimum": when("number", lambda v, w: v >= w),
    "maximum": when("number", lambda v, w: v <= w),
    "exclusiveMinimum": when("number", lambda v, w: v > w),
    "exclusiveMaximum": when("number", lambda v, w: v < w),
    "multipleOf": when("number", lambda v, w: Fraction(repr(v)) % Fraction(repr(w)) == 0),
    "anyOf": lambda c, v, w, s: holds(any(c.check(v, part, ()) is None for part in w)),
    "oneOf": one_of,
    "allOf": all_of,
    "not": lambda c, v, w, s: holds(c.check(v, w, ()) is not None),
    "if": conditional,
    "then": lambda c, v, w, s: None,  # if reads them
    "else": lambda c, v, w, s: None,
    "$ref": lambda c, v, w, s: c.check(v, c.resolved(w), ()),
}
