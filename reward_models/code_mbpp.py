"""MBPP: a program against a few assertions."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from llmrl.limits import limits
from llmrl.types import Prompt, Rollout, Score
from reward_models.sandbox.calls import as_calls, defined
from reward_models.sandbox.judge import Verdict, judge_calls, judge_tests
from reward_models.sandbox.response import Unreadable, program
from reward_models.sandbox.score import Extraction, limits_of, scored, unread
from reward_models.sandbox.session import Limits

PROTOCOL = "llmrl/mbpp@1"


@limits(seconds=120, memory_gb=None)
def mbpp(
    prompt: Prompt,
    rollout: Rollout,
    *,
    extraction: Extraction = "last_block",
    timeout: float = 10.0,
    memory_gb: float = 1.0,
    backend: str = "auto",
    challenge: bool = False,
    fraction: bool = False,
) -> Score:
    """1.0 if every assertion of an MBPP row holds, else 0.0 (arXiv:2108.07732).

    Reads the columns test_list and, where there are, test_setup_code and test_imports; challenge: also
    challenge_test_list. Options else as for humaneval. fraction: the share of the assertions that hold.
    Raises ValueError for a row without tests or with tests that do not run, SandboxError without a sandbox.
    """
    columns, resources = prompt.columns, limits_of(timeout, memory_gb)
    tests = lines_of(columns.get("test_list")) + (lines_of(columns.get("challenge_test_list")) if challenge else [])
    setup = "\n".join([*lines_of(columns.get("test_imports")), columns.get("test_setup_code") or ""]).strip()
    if not tests:
        raise ValueError(f"column test_list is empty; expected assertions. Columns: {', '.join(columns) or 'none'}")
    try:
        code = program(rollout.text, extraction, is_chat=prompt.messages is not None)
    except Unreadable as reason:
        return unread(str(reason), PROTOCOL)
    return scored(judged(code, setup, tests, resources, backend, every=fraction), PROTOCOL, fraction=fraction)


def lines_of(value: object) -> list[str]:
    """A column that holds a list of statements, or is not there. Raises ValueError for anything else."""
    if value is None:
        return []
    if isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(one, str) for one in value):
        return list(value)
    raise ValueError(f"test_list holds {str(value)[:60]!r}; expected a list of statements")


def judged(source: str, setup: str, tests: Sequence[str], resources: Limits, backend: str, *, every: bool) -> Verdict:
    """The verdict by calls where all tests are calls, else by running them with stand-ins for the program's functions."""
    statements = [node for test in tests for node in ast.parse(test.strip()).body]
    calls = as_calls(statements, defined(ast.parse(setup)))
    if not calls:
        return judge_tests(source, setup, "\n".join(tests), None, resources, backend)
    return judge_calls(source, setup, calls, resources, backend, every=every)
