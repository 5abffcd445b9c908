"""Assertions → calls: what the candidate is asked, and what its answer is held against outside of its process.

Reads test code of a data set, never a response.
"""

from __future__ import annotations

import ast
import builtins
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from reward_models.sandbox.wire import spread

CONVERTERS: dict[str, Callable[[Any], Any]] = {
    kind.__name__: kind for kind in (bool, int, float, str, list, tuple, sorted, len, abs, round)
} | {"set": lambda value: set(spread(list(value))), "frozenset": lambda value: frozenset(spread(list(value)))}
OPERATORS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda value, expected: value in expected,
    ast.NotIn: lambda value, expected: value not in expected,
}


class Unreadable(Exception):
    """The assertion is not a call held against a literal."""


@dataclass(frozen=True)
class Call:
    """request: what the candidate's process is asked, ('evaluate', expression) or ('apply', function, arguments, named).

    holds: whether the value that came back is right; may raise.
    """

    request: tuple[Any, ...]
    holds: Callable[[Any], bool]


def as_calls(statements: Sequence[ast.stmt], own_names: set[str]) -> list[Call] | None:
    """The calls of a run of assertions, or None where one of them is more than a call held against a literal.

    own_names: what the test code defines itself; a call of one of these is the test's affair, not the candidate's.
    """
    try:
        return [as_call(statement, own_names) for statement in statements if not idle(statement)]
    except Unreadable:
        return None


def idle(statement: ast.stmt) -> bool:
    """Whether it says nothing of the candidate: `assert True`, a docstring, pass."""
    if isinstance(statement, ast.Assert):
        return isinstance(statement.test, ast.Constant) and bool(statement.test.value)
    return isinstance(statement, ast.Pass) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    )


def as_call(statement: ast.stmt, own_names: set[str]) -> Call:
    """One assertion. Raises Unreadable."""
    if not isinstance(statement, ast.Assert):
        raise Unreadable
    test, wanted = statement.test, True
    while isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        test, wanted = test.operand, not wanted
    near = tolerance(test)
    if near is not None:
        inner, expected, within = near
        expression, convert = called(inner, own_names)
        return Call(("evaluate", expression), lambda value: within(convert(value), expected) is wanted)
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        expression, convert = called(test.left, own_names)
        compare, expected = OPERATORS[type(test.ops[0])], literal(test.comparators[0])
        if compare in (operator.is_, operator.is_not) and not isinstance(expected, bool | None):
            raise Unreadable
        return Call(("evaluate", expression), lambda value: bool(compare(convert(value), expected)) is wanted)
    expression, convert = called(test, own_names)
    return Call(("evaluate", expression), lambda value: bool(convert(value)) is wanted)


def called(node: ast.expr, own_names: set[str]) -> tuple[str, Callable[[Any], Any]]:
    """(the call of the candidate, what the test does to its result) of `f(...)` or of a conversion around one."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise Unreadable
    name = node.func.id
    if name in own_names:
        raise Unreadable
    if hasattr(builtins, name) and any(calls_other(argument) for argument in node.args):
        if name not in CONVERTERS or len(node.args) != 1 or node.keywords:
            raise Unreadable
        expression, inner = called(node.args[0], own_names)
        return expression, lambda value: CONVERTERS[name](inner(value))
    return ast.unparse(node), lambda value: value


def calls_other(node: ast.expr) -> bool:
    """Whether something that is not built in is called by name. Else even `sum(1, 2)` is the candidate's own function."""
    names = (n.func.id for n in ast.walk(node) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name))
    return any(not hasattr(builtins, name) for name in names)


def tolerance(node: ast.expr) -> tuple[ast.expr, float, Callable[[Any, float], bool]] | None:
    """(call, number, whether a value is near it) of `abs(f(...) - y) < t` and `math.isclose(f(...), y, ...)`."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("math.isclose", "isclose"):
        if len(node.args) != 2 or any(k.arg not in ("rel_tol", "abs_tol") for k in node.keywords):
            raise Unreadable
        options = {k.arg: literal(k.value) for k in node.keywords}
        return node.args[0], literal(node.args[1]), lambda value, number: math.isclose(value, number, **options)
    if not (isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], ast.Lt | ast.LtE)):
        return None
    left = node.left
    if not (isinstance(left, ast.Call) and ast.unparse(left.func) in ("abs", "math.fabs") and len(left.args) == 1):
        return None
    difference = left.args[0]
    if not (isinstance(difference, ast.BinOp) and isinstance(difference.op, ast.Sub)):
        return None
    compare, bound = OPERATORS[type(node.ops[0])], literal(node.comparators[0])
    return difference.left, literal(difference.right), lambda value, number: compare(abs(value - number), bound)


def literal(node: ast.expr) -> Any:
    """The value of a literal. Raises Unreadable."""
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise Unreadable from error


def defined(module: ast.Module) -> set[str]:
    """The functions, classes and other names that test code brings along itself."""
    names = set()
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).split(".")[0])
    return names
