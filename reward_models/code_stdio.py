"""Programs against inputs and outputs, as LiveCodeBench, APPS and TACO publish them."""

from __future__ import annotations

import json
import math
import re
from functools import partial
from typing import Any, NamedTuple

from llmrl.limits import limits
from llmrl.types import Prompt, Rollout, Score
from reward_models.sandbox.calls import Call
from reward_models.sandbox.judge import judge_calls, judge_programs
from reward_models.sandbox.response import Unreadable, program
from reward_models.sandbox.score import Extraction, limits_of, scored, unread

PROTOCOL = "llmrl/code-stdio@1"
NUMBER = re.compile(r"[+-]?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,3})?")
# what the sites that such tasks come from import for a solution
IMPORTS = """
import bisect, collections, functools, heapq, itertools, math, operator, random, re, string
from bisect import *; from collections import *; from functools import *; from heapq import *; from itertools import *
from math import *; from typing import *
"""


class Tests(NamedTuple):
    """Inputs and outputs; function: the one that is called, or None for a program that reads and writes text."""

    inputs: list[Any]
    outputs: list[Any]
    function: str | None


@limits(seconds=240, memory_gb=None)
def code_stdio(
    prompt: Prompt,
    rollout: Rollout,
    *,
    extraction: Extraction = "last_block",
    timeout: float = 6.0,
    total_timeout: float = 60.0,
    memory_gb: float = 1.0,
    backend: str = "auto",
    tolerance: float = 0.0,
    fraction: bool = False,
) -> Score:
    """1.0 if the program turns every input into its output, else 0.0.

    Tests are read from the column tests, input_output, public_test_cases (+ private_test_cases as JSON), inputs and
    outputs, or the reference: lists of {input, output} or {inputs, outputs, fn_name}, or JSON text of these. With a
    function's name (fn_name, or func_name in the column metadata) the function, or the method of class Solution, is called
    with each input; tuples count as lists. Else the program reads the input and its output is compared line by line, word
    by word; space at the ends of lines and empty lines at the end do not count. tolerance: words that both are numbers
    may differ by tolerance * max(1, |expected|). timeout: seconds for each run, or for all calls of a function;
    total_timeout: for all runs; what has not begun by then fails. fraction: the share of the tests that pass. Other
    options as for humaneval.
    Raises ValueError for a row without tests, SandboxError without a sandbox.
    """
    tests, resources = read_tests(prompt), limits_of(timeout, memory_gb)
    limits_of(total_timeout, memory_gb)
    try:
        code = program(rollout.text, extraction, is_chat=prompt.messages is not None)
    except Unreadable as reason:
        return unread(str(reason), PROTOCOL)
    pairs = zip(tests.inputs, tests.outputs, strict=True)
    if tests.function is None:
        runs = [(text, partial(same_output, expected=expected, tolerance=tolerance)) for text, expected in pairs]
        verdict = judge_programs(code, runs, resources, backend, every=fraction, total_seconds=total_timeout)
    else:
        function = f"(Solution().{tests.function} if 'Solution' in globals() else {tests.function})"
        calls = [
            Call(("apply", function, tuple(given), {}), partial(same_value, expected=expected))
            for given, expected in pairs
        ]
        verdict = judge_calls(IMPORTS + code, "", calls, resources, backend, every=fraction)
    return scored(verdict, PROTOCOL, fraction=fraction)


def read_tests(prompt: Prompt) -> Tests:
    """The tests of a row. Raises ValueError."""
    columns = prompt.columns
    if columns.get("inputs") is not None:
        found: Any = {"inputs": parsed(columns["inputs"]), "outputs": parsed(columns.get("outputs"))}
    elif columns.get("public_test_cases") is not None:
        found = parsed(columns["public_test_cases"]) + parsed(columns.get("private_test_cases") or [])
    else:
        given = next((columns[name] for name in ("tests", "input_output") if columns.get(name) is not None), None)
        found = parsed(prompt.reference if given is None else given)
    metadata = parsed(columns.get("metadata") or {})
    function = columns.get("fn_name") or (metadata.get("func_name") if isinstance(metadata, dict) else None)
    if isinstance(found, list) and all(isinstance(one, dict) and {"input", "output"} <= set(one) for one in found):
        found = {"inputs": [one["input"] for one in found], "outputs": [one["output"] for one in found]}
        if function is not None:  # LiveCodeBench writes arguments as lines of JSON
            found["inputs"] = [
                list(map(json.loads, one.splitlines())) if isinstance(one, str) else one for one in found["inputs"]
            ]
            found["outputs"] = [json.loads(one) if isinstance(one, str) else one for one in found["outputs"]]
    if not isinstance(found, dict):
        raise ValueError(
            f"tests are {str(found)[:60]!r}; expected lists of inputs and outputs. Columns: {', '.join(columns)}"
        )
    inputs, outputs, function = found.get("inputs"), found.get("outputs"), function or found.get("fn_name")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs) or not inputs:
        raise ValueError("tests: inputs and outputs are not two lists of one length, with at least one test")
    if function is None:
        return Tests([text(one) for one in inputs], [text(one) for one in outputs], None)
    if not isinstance(function, str) or not function.rpartition(".")[2].isidentifier():
        raise ValueError(f"fn_name is {str(function)[:60]!r}; expected the name of a function")
    if not all(isinstance(one, list) for one in inputs):
        raise ValueError(f"inputs of {function} are not lists of arguments")
    return Tests(inputs, outputs, function.rpartition(".")[2])


def parsed(value: Any) -> Any:
    """JSON text as what it says; anything else as it is. Raises ValueError for other text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(
            f"tests are text that is not JSON: {value[:40]!r}. Pickled or compressed tests are not read; convert them once"
        ) from error


def text(value: Any) -> str:
    """Standard input or output, which some sets keep as a list of lines."""
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    if not isinstance(value, str):
        raise ValueError(f"a test holds {str(value)[:60]!r}; expected text, or a fn_name for a function's values")
    return value


def same_output(output: str, *, expected: str, tolerance: float) -> bool:
    """Whether two outputs have the same words on the same lines."""
    found, wanted = (one.rstrip().split("\n") for one in (output, expected))
    if len(found) != len(wanted):
        return False
    for a, b in zip(found, wanted, strict=True):
        words, wanted_words = a.split(), b.split()
        if len(words) != len(wanted_words):
            return False
        if not all(x == y or near(x, y, tolerance) for x, y in zip(words, wanted_words, strict=True)):
            return False
    return True


def near(word: str, expected: str, tolerance: float) -> bool:
    """Whether both are numbers, as digits are written in ASCII, and near each other."""
    if tolerance <= 0 or not NUMBER.fullmatch(word) or not NUMBER.fullmatch(expected):
        return False
    a, b = float(word), float(expected)
    return math.isfinite(a) and abs(a - b) <= tolerance * max(1.0, abs(b))


def same_value(value: Any, *, expected: Any) -> bool:
    """Whether a function's value is the expected one; APPS wraps some expected values in a list of one."""
    value = as_lists(value)
    return value == expected or (isinstance(expected, list) and len(expected) == 1 and value == expected[0])


def as_lists(value: Any) -> Any:
    """Tuples as the lists that JSON has instead."""
    return [as_lists(one) for one in value] if isinstance(value, list | tuple) else value
