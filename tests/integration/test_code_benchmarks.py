"""The code benchmarks' own solutions pass; the same solutions, made wrong, do not."""

import ast
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llmrl.types import Prompt, Rollout
from reward_models.code_humaneval import humaneval
from reward_models.code_mbpp import mbpp
from reward_models.sandbox.errors import InfrastructureError, SandboxError
from reward_models.sandbox.judge import tier_for
from reward_models.sandbox.session import Limits, Session

FOLDER = Path(__file__).parents[2].parent / "shared" / "data"
NOT_RUNNABLE: dict[int, str] = {}
WORKERS = 2


def no_sandbox():
    try:
        return not tier_for("auto")
    except SandboxError:
        return True


pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(no_sandbox(), reason="no sandbox works here: install bubblewrap or allow Landlock"),
]
published = [
    pytest.mark.real_data,
    pytest.mark.skipif(not FOLDER.is_dir(), reason="no ../shared/data beside the checkout: published data not there"),
]

# wrapped around the function under test, outermost calls only: recursion would undo a change of sign
WRONG = """
def _wrong(function, change):
    depth = [0]
    def wrapped(*arguments, **named):
        depth[0] += 1
        try:
            value = function(*arguments, **named)
        finally:
            depth[0] -= 1
        return value if depth[0] else change(value)
    return wrapped
def _next(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float, complex)):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, (list, tuple)):
        return value + type(value)([None]) if type(value) in (list, tuple) else [*value, None]
    if isinstance(value, (set, frozenset)):
        return value | {None}
    if isinstance(value, dict):
        return {**value, None: None}
    return 0
class _Any:
    def __init__(self, value):
        pass
    def __eq__(self, other):
        return True
"""
CHANGES = {"the next value": "_next", "an object equal to all": "_Any", "nothing": "lambda value: None"}


def rows_of(name):
    return [json.loads(line) for line in (FOLDER / name).open(encoding="utf-8")]


def spoilt(source, name, change):
    return f"{source}\n{WRONG}\n{name} = _wrong({name}, {CHANGES[change]})\n"


def function_of(row):
    """The function that an MBPP row's first assertion calls."""
    test = ast.parse(row["test_list"][0].strip()).body[0].test
    calls = [n.func.id for n in ast.walk(test) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    defined = {n.name for n in ast.walk(ast.parse(row["code"])) if isinstance(n, ast.FunctionDef)}
    return next(name for name in calls if name in defined)


def judged(judge, items):
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(judge, items))


def humaneval_score(item):
    row, code = item
    prompt = Prompt(row["task_id"], messages=({"role": "user", "content": row["prompt"]},), columns=row)
    return humaneval(prompt, Rollout((), f"```python\n{code}\n```"))


def mbpp_score(item):
    row, code = item
    prompt = Prompt(str(row["task_id"]), messages=({"role": "user", "content": row["text"]},), columns=row)
    return mbpp(prompt, Rollout((), f"Here it is.\n```python\n{code}\n```\nDone."))


def failures(rows, scores):
    return {row["task_id"]: s.evidence["reason"] for row, s in zip(rows, scores, strict=True) if s.value != 1.0}


class TestPublished:
    pytestmark = published

    def test_every_humaneval_solution_passes_as_a_completion(self):
        rows = rows_of("humaneval.jsonl")

        def completion(row):
            return humaneval(Prompt("p", text=row["prompt"], columns=row), Rollout((), row["canonical_solution"]))

        assert failures(rows, judged(completion, rows)) == {} and len(rows) == 164

    @pytest.mark.parametrize("change", CHANGES)
    def test_every_humaneval_solution_made_wrong_fails(self, change):
        rows = rows_of("humaneval.jsonl")
        made = [(row, spoilt(row["prompt"] + row["canonical_solution"], row["entry_point"], change)) for row in rows]
        assert [
            row["task_id"] for (row, _), s in zip(made, judged(humaneval_score, made), strict=True) if s.value != 0
        ] == []

    def test_every_mbpp_solution_passes(self):
        rows = [row for row in rows_of("mbpp.jsonl") if row["task_id"] not in NOT_RUNNABLE]
        assert failures(rows, judged(mbpp_score, [(row, row["code"]) for row in rows])) == {}
        assert len(rows) + len(NOT_RUNNABLE) == 974

    @pytest.mark.parametrize("change", CHANGES)
    def test_mbpp_solutions_made_wrong_fail(self, change):
        rows = rows_of("mbpp.jsonl")[list(CHANGES).index(change) :: 6]
        made = [(row, spoilt(row["code"], function_of(row), change)) for row in rows]
        assert [row["task_id"] for row, s in zip(rows, judged(mbpp_score, made), strict=True) if s.value != 0] == []


def test_four_hundred_runs_one_after_the_other_start_without_fail():
    """Limits on processes counted across sandboxes would refuse the later ones."""

    def one(number):
        try:
            with Session("candidate", Limits(), tier_for("auto")) as session:
                return session.ask("evaluate", f"{number} + 1")
        except InfrastructureError as error:
            return str(error)

    assert judged(one, range(400)) == [("value", number + 1) for number in range(400)]
