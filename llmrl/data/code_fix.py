"""Small Python functions with one mistake, and assertions that tell the mended one: generated, nothing to download."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

from llmrl.data.puzzles import rows
from llmrl.data.read import Row
from llmrl.data.tasks import turn


class Mistake(NamedTuple):
    """What stands wrong for right in the text's place, and what the function then computes."""

    place: str
    right: str
    wrong: str
    compute: Callable[..., Any]


class Function(NamedTuple):
    """A function in words, its text with places for mistakes, arguments to try it on, and what it should compute."""

    says: str
    text: str
    draw: Callable[[random.Random], list[Any]]
    compute: Callable[..., Any]
    mistakes: list[Mistake]


def numbers(rng: random.Random) -> list[Any]:
    return [[rng.randint(-9, 9) for _ in range(rng.randint(3, 7))]]


def word(rng: random.Random) -> list[Any]:
    return ["".join(rng.choice("abcdeiou") for _ in range(rng.randint(4, 9)))]


def two(rng: random.Random) -> list[Any]:
    return [rng.randint(2, 9), rng.randint(2, 9)]


def numbers_and_one(rng: random.Random) -> list[Any]:
    return [*numbers(rng), rng.randint(-5, 5)]


FUNCTIONS = {
    "total_of_even": Function(
        "the sum of the even numbers of a list",
        "def {name}(values):\n    total = {start}\n    for value in values:\n        if value % 2 {compare} 0:\n"
        "            total {add} value\n    return total\n",
        numbers,
        lambda values: sum(v for v in values if v % 2 == 0),
        [
            Mistake("start", "0", "1", lambda values: 1 + sum(v for v in values if v % 2 == 0)),
            Mistake("compare", "==", "!=", lambda values: sum(v for v in values if v % 2)),
            Mistake("add", "+=", "-=", lambda values: -sum(v for v in values if v % 2 == 0)),
        ],
    ),
    "largest": Function(
        "the largest number of a list",
        "def {name}(values):\n    best = values[0]\n    for value in values{rest}:\n        if value {compare} best:\n"
        "            best = value\n    return {result}\n",
        numbers,
        max,
        [
            Mistake("rest", "[1:]", "[1:-1]", lambda values: max(values[:-1])),
            Mistake("compare", ">", "<", min),
            Mistake("result", "best", "value", lambda values: values[-1]),
        ],
    ),
    "count_above": Function(
        "how many numbers of a list are greater than a limit",
        "def {name}(values, limit):\n    count = 0\n    for value in values:\n        if value {compare} limit:\n"
        "            count {add} 1\n    return {result}\n",
        numbers_and_one,
        lambda values, limit: sum(v > limit for v in values),
        [
            Mistake("compare", ">", ">=", lambda values, limit: sum(v >= limit for v in values)),
            Mistake("add", "+=", "=", lambda values, limit: int(any(v > limit for v in values))),
            Mistake("result", "count", "count + limit", lambda values, limit: sum(v > limit for v in values) + limit),
        ],
    ),
    "power": Function(
        "base to the power of exponent",
        "def {name}(base, exponent):\n    result = {start}\n    for _ in range({times}):\n"
        "        result {multiply} base\n    return result\n",
        two,
        pow,
        [
            Mistake("start", "1", "0", lambda base, exponent: 0),
            Mistake("times", "exponent", "exponent - 1", lambda base, exponent: base ** (exponent - 1)),
            Mistake("multiply", "*=", "+=", lambda base, exponent: 1 + base * exponent),
        ],
    ),
    "without_vowels": Function(
        "a word without the letters a, e, i, o and u",
        'def {name}(word):\n    kept = ""\n    for letter in word:\n        if letter {test} "{vowels}":\n'
        "            kept {join} letter\n    return kept\n",
        word,
        lambda word: "".join(c for c in word if c not in "aeiou"),
        [
            Mistake("test", "not in", "in", lambda word: "".join(c for c in word if c in "aeiou")),
            Mistake("vowels", "aeiou", "aeio", lambda word: "".join(c for c in word if c not in "aeio")),
            Mistake("join", "+=", "=", lambda word: "".join(c for c in word if c not in "aeiou")[-1:]),
        ],
    ),
    "backwards": Function(
        "a word backwards",
        'def {name}(word):\n    turned = ""\n    for letter in word{part}:\n        turned = {joined}\n'
        "    return {result}\n",
        word,
        lambda word: word[::-1],
        [
            Mistake("part", "", "[1:]", lambda word: word[:0:-1]),
            Mistake("joined", "letter + turned", "turned + letter", lambda word: word),
            Mistake("result", "turned", "turned[:-1]", lambda word: word[:0:-1]),
        ],
    ),
}


def code_fix(*, size: int = 4096, seed: int = 0, split: str = "train", num_tests: int = 5) -> list[Row]:
    """Mend a Python function with one mistake. For the scorer `mbpp`.

    The column test_list holds num_tests assertions, of which the function as given fails at least one; the reference is
    the function before the mistake came in.
    """

    def problem(rng: random.Random) -> Row | None:
        kind, function = rng.choice(list(FUNCTIONS.items()))
        name, mistake = f"{kind}_{rng.randint(1, 999)}", rng.choice(function.mistakes)
        right = {one.place: one.right for one in function.mistakes} | {"name": name}
        mended, given = function.text.format(**right), function.text.format(**right | {mistake.place: mistake.wrong})
        drawn = [function.draw(rng) for _ in range(num_tests)]
        if all(function.compute(*case) == mistake.compute(*case) for case in drawn):
            return None
        tests = [f"assert {name}({', '.join(map(repr, case))}) == {function.compute(*case)!r}" for case in drawn]
        text = f"{name} should return {function.says}, but it has a mistake:\n\n```python\n{given}```\n\n"
        text += (
            f"Mend it. Your code must pass tests such as\n{tests[0]}\nAnswer with the whole function in one code block."
        )
        return {"prompt": turn("user", text), "reference": mended, "test_list": tests}

    return rows(problem, size, seed, split)
