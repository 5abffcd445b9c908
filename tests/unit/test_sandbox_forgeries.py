"""Programs that want to pass without being right, against every road to a verdict."""

import subprocess
import tomllib
from pathlib import Path

import pytest
from test_sandbox_escapes import TIERS

from llmrl.types import Prompt, Rollout
from reward_models.code_humaneval import humaneval
from reward_models.code_mbpp import mbpp
from reward_models.code_stdio import code_stdio
from reward_models.sandbox import tiers

FORGERIES = tomllib.loads((Path(__file__).parents[1] / "fixtures" / "attacks" / "forgeries.toml").read_text())[
    "forgery"
]
FUNCTIONS = [one for one in FORGERIES if not one.get("stdin")]
PROGRAMS = [one for one in FORGERIES if one.get("stdin")]
HONEST = "def add(a, b):\n    return a + b\n"
HEAD = 'def add(a, b):\n    """The sum."""\n'
CALLS = """
def check(candidate):
    assert candidate(1, 2) == 3
    assert candidate(0, 1) == 1
    assert candidate(-4, 9) == 5
"""
# a loop, so the test itself has to run
RELAY = "def check(candidate):\n    for a, b in ((1, 2), (0, 1), (-4, 9)):\n        assert candidate(a, b) == a + b\n"
NEAR = (
    "def check(candidate):\n    assert abs(candidate(1, 2) - 3) < 1e-6\n    assert abs(candidate(5, 5) - 10) < 1e-6\n"
)
TESTS = [{"input": "1 2\n", "output": "3\n"}, {"input": "-4 9\n", "output": "5\n"}]

pytestmark = pytest.mark.sandbox
by_name = {"ids": lambda one: one["name"]}


def prompt(**columns):
    return Prompt("p", messages=({"role": "user", "content": "Write add."},), columns=columns)


def answer(code):
    return Rollout((), f"```python\n{code}\n```")


ROADS = {
    "calls": lambda code, tier: humaneval(
        prompt(test=CALLS, entry_point="add", prompt=HEAD), answer(code), backend=tier, timeout=2
    ),
    "relay": lambda code, tier: humaneval(
        prompt(test=RELAY, entry_point="add", prompt=HEAD), answer(code), backend=tier, timeout=2
    ),
    "tolerance": lambda code, tier: humaneval(
        prompt(test=NEAR, entry_point="add", prompt=HEAD), answer(code), backend=tier, timeout=2
    ),
    "mbpp": lambda code, tier: mbpp(
        prompt(test_list=["assert add(1, 2) == 3", "assert add(-4, 9) == 5"]), answer(code), backend=tier, timeout=2
    ),
    "values": lambda code, tier: code_stdio(
        prompt(tests={"inputs": [[1, 2], [-4, 9]], "outputs": [3, 5], "fn_name": "add"}), answer(code), backend=tier,
        timeout=2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("road", ROADS)
def test_the_honest_program_passes(road, tier):
    assert ROADS[road](HONEST, tier).value == 1.0


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("forgery", FUNCTIONS, **by_name)
def test_no_forgery_passes_by_calls_or_by_relay(forgery, tier):
    for road in ("calls", "relay"):
        score = ROADS[road](forgery["code"], tier)
        assert score.value == 0.0, (road, score)
        assert "3" not in score.feedback and score.evidence["correct"] is False


@pytest.mark.parametrize("road", ["tolerance", "mbpp", "values"])
def test_no_forgery_passes_on_the_other_roads(road):
    forged = [one["name"] for one in FUNCTIONS if ROADS[road](one["code"], "auto").value != 0.0]
    assert forged == []


@pytest.mark.parametrize("forgery", PROGRAMS, **by_name)
def test_no_program_passes_by_its_output(forgery):
    assert code_stdio(prompt(tests=TESTS), answer(forgery["code"]), timeout=2).value == 0.0


def test_the_honest_program_passes_by_its_output():
    score = code_stdio(prompt(tests=TESTS), answer("a, b = map(int, input().split())\nprint(a + b)"))
    assert score.value == 1.0 and (score.evidence["passed"], score.evidence["total"]) == (2, 2)


@pytest.mark.parametrize("forgery", [one for one in FORGERIES if one.get("naive")], **by_name)
def test_the_same_program_passes_where_test_and_program_share_a_process(forgery):
    shared = "text = '(1, 2) == 3, (0, 1) == 1, (-4, 9) == 5'\n" + forgery["code"] + CALLS + "check(add)\n"
    command = [tiers.python().path, "-I", "-S", "-c", shared]
    assert subprocess.run(command, timeout=10, cwd="/", env={}, **tiers.user()).returncode == 0


def test_the_suite_is_large_enough():
    assert len(FORGERIES) >= 20 and sum(one.get("naive", False) for one in FORGERIES) >= 10
