"""Arithmetic with given numbers: the expression is read by a parser of its own and computed exactly."""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

from llmrl.limits import limits
from llmrl.types import Prompt, Rollout, Score
from reward_models.extraction import TAIL, in_answer_tag

LONGEST = 500  # characters of an expression
TOKEN = re.compile(r"\s*([0-9]{1,9}|[-+*/()])\s*")
ALIASES = str.maketrans({"×": "*", "·": "*", "÷": "/", "\u2212": "-"})
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
STRENGTH = {"+": 1, "-": 1, "*": 2, "/": 2}


@limits(seconds=5, confined=True)
def countdown(prompt: Prompt, rollout: Rollout, *, use_all: bool = True) -> Score:
    """1.0 if the expression in the last <answer>...</answer> makes the target out of the given numbers, else 0.0.

    Reads the columns `nums` (whole numbers) and `target`. Allowed are + - * /, parentheses and the given numbers, each
    exactly once, or with `use_all` off at most once; no signs, no equation. Computed in exact fractions. Several
    expressions can be right: the reference is not looked at. Raises ValueError for a row without these columns.
    """
    numbers, target = given(prompt.columns)
    read = in_answer_tag(rollout.text[-TAIL:])
    evidence = {"read": read and read[:200], "numbers": numbers[:20], "target": target}
    if read is None:
        return Score(0.0, feedback="There is no <answer>...</answer> in the response.", evidence=evidence)
    try:
        value = value_of(read, numbers, use_all=use_all)
    except ArithmeticError as error:
        return Score(0.0, feedback=str(error), evidence=evidence)
    said = f"The expression makes {value}, " + ("as asked." if value == target else f"not {target}.")
    return Score(float(value == target), feedback=said[:200], evidence=evidence | {"value": str(value)[:200]})


def given(columns: dict) -> tuple[list[int], int]:
    """The numbers and the target of a row."""
    numbers, target = columns.get("nums"), columns.get("target")
    whole = isinstance(numbers, list | tuple) and all(type(one) is int and 0 <= one < 10**9 for one in numbers)
    if not whole or not 1 <= len(numbers) <= 50 or type(target) is not int:
        raise ValueError(
            f"columns nums and target are {numbers!r:.80} and {target!r:.40}; expected up to 50 whole numbers and a whole "
            "number. Use the source countdown, or data with these columns."
        )
    return list(numbers), target


def value_of(text: str, numbers: Sequence[int], *, use_all: bool) -> Fraction:
    """The exact value of an expression over the numbers. ArithmeticError, in a sentence, where the rules are broken."""
    tokens = tokens_of(text)
    used, allowed = Counter(int(token) for token in tokens if token.isdigit()), Counter(numbers)
    if used - allowed:
        number = next(iter(used - allowed))
        raise ArithmeticError(f"The expression uses {number} more often than it is given.")
    if use_all and allowed - used:
        raise ArithmeticError("The expression leaves given numbers out.")
    return computed(tokens)


def tokens_of(text: str) -> list[str]:
    """Numbers, operators and parentheses, in order."""
    text = text.translate(ALIASES)
    if len(text) > LONGEST:
        raise ArithmeticError(f"The expression is longer than {LONGEST} characters.")
    tokens, place = [], 0
    while place < len(text):
        match = TOKEN.match(text, place)
        if match is None:
            raise ArithmeticError("The expression holds more than numbers, + - * / and parentheses.")
        tokens.append(match[1])
        place = match.end()
    return tokens


def computed(tokens: Sequence[str]) -> Fraction:
    """The value of an infix expression, with one stack of values and one of pending operators: no recursion."""
    values: list[Fraction] = []
    pending: list[str] = []
    wants_value = True
    for token in tokens:
        if wants_value != (token.isdigit() or token == "("):
            raise ArithmeticError("The expression cannot be read.")
        if token.isdigit():
            values.append(Fraction(int(token)))
            wants_value = False
        elif token == "(":
            pending.append(token)
        else:
            settle(values, pending, STRENGTH.get(token, 0))
            if token == ")":
                if not pending:
                    raise ArithmeticError("A closing parenthesis has no opening one.")
                pending.pop()
            else:
                pending.append(token)
                wants_value = True
    if wants_value:
        raise ArithmeticError("The expression is not complete.")
    settle(values, pending, 0)
    if pending:
        raise ArithmeticError("A parenthesis is left open.")
    return values[0]


def settle(values: list[Fraction], pending: list[str], strength: int) -> None:
    """Carry out pending operations at least as strong as `strength`, back to the last open parenthesis."""
    while pending and pending[-1] != "(" and STRENGTH[pending[-1]] >= strength:
        right, left, operation = values.pop(), values.pop(), pending.pop()
        try:
            values.append(OPERATIONS[operation](left, right))
        except ZeroDivisionError:
            raise ArithmeticError("The expression divides by zero.") from None
