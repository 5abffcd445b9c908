"""The three code scorers: what they read of a response and of a row, and what they say."""

import json

import pytest

from llmrl.types import Prompt, Rollout
from reward_models.code_humaneval import humaneval
from reward_models.code_mbpp import mbpp
from reward_models.code_stdio import code_stdio, read_tests, same_output
from reward_models.sandbox.errors import SandboxError
from reward_models.sandbox.judge import tier_for
from reward_models.sandbox.response import LONGEST, Unreadable, blocks, continued, program


def works():
    try:
        return bool(tier_for("auto"))
    except SandboxError:
        return False


sandbox = [pytest.mark.sandbox, pytest.mark.skipif(not works(), reason="no sandbox works here")]
BLOCK = "First:\n```python\na = 1\n```\nThen:\n```py\ndef f(x):\n    return x\n```\nDone."


def test_blocks_are_what_stands_between_fences():
    assert blocks(BLOCK) == ["a = 1", "def f(x):\n    return x"]
    assert blocks("```\na\n```\n```\nb") == ["a", "b"]  # cut off before it was closed
    assert blocks("no code, ``` in a line") == []


@pytest.mark.parametrize(
    ("extraction", "is_chat", "wanted"),
    [
        ("auto", True, "def f(x):\n    return x"),
        ("last_block", False, "def f(x):\n    return x"),
        ("first_block", True, "a = 1"),
        ("auto", False, BLOCK[: BLOCK.index("\ndef")]),
        ("completion", True, BLOCK[: BLOCK.index("\ndef")]),
    ],
)
def test_what_of_a_response_is_code(extraction, is_chat, wanted):
    assert program(BLOCK, extraction, is_chat=is_chat) == wanted


def test_a_completion_ends_at_the_first_stop_sequence():
    assert program("    return 1\n\n\ndef g():\n    pass\n# x", "completion", is_chat=False) == "    return 1\n\n"
    assert program("    return 1\n    # inside\n    if x:\n", "completion", is_chat=False).endswith("if x:\n")


@pytest.mark.parametrize("text", ["", " \n", "```python\n```", "x" * (LONGEST + 1)])
def test_a_response_without_a_program_is_refused(text):
    with pytest.raises(Unreadable):
        program(text, "last_block", is_chat=True)


def test_a_definition_replaces_the_head_and_a_body_goes_on_from_it():
    assert continued("def f():\n", "    return 1", "f") == "def f():\n    return 1\n"
    assert continued("def f():\n", "import x\ndef f():\n    return 1", "f").startswith("def f():\n\nimport x")
    assert continued("H\n", "def fun():\n  pass", "f").startswith("H\ndef")


@pytest.mark.parametrize("size", [1_000_000])
def test_hostile_text_is_read_in_linear_time(size):
    for text in (
        "`" * size,
        "```\n" * (size // 4),
        "def " * (size // 4),
        "\n" * size,
        "async " * (size // 6),
        "\ud800" * size,
    ):
        try:
            continued("", program(text, "last_block", is_chat=True), "f")
        except Unreadable:
            pass
        continued("", text, "f")


HEAD = "def double(x: int) -> int:\n    '''Twice x.'''\n"
ROW = {
    "prompt": HEAD,
    "entry_point": "double",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(0) == 0\n",
}


def chat(**columns):
    return Prompt("p", messages=({"role": "user", "content": f"Complete:\n```python\n{HEAD}```"},), columns=columns)


class TestInASandbox:
    pytestmark = sandbox

    @pytest.mark.parametrize(
        "text",
        [
            "```python\ndef double(x):\n    return 2 * x\n```",
            "```python\n    return x + x\n```",
            "def double(x):\n    return 2 * x",
            "```\nclass A:\n    pass\n\ndef double(x):\n    return x << 1\n```\nThat is all.",
        ],
    )
    def test_humaneval_takes_whole_definitions_and_bodies(self, text):
        assert humaneval(chat(**ROW), Rollout((), text)).value == 1.0

    def test_humaneval_finds_the_head_in_the_question_and_completes_raw_text(self):
        columns = {key: value for key, value in ROW.items() if key != "prompt"}
        assert humaneval(chat(**columns), Rollout((), "```python\n    return 2 * x\n```")).value == 1.0
        raw = Prompt("p", text=HEAD, columns=columns)
        assert humaneval(raw, Rollout((), "    return 2 * x\n\ndef main():\n    1 / 0")).value == 1.0

    def test_the_score_tells_what_failed_and_the_feedback_does_not(self):
        score = humaneval(chat(**ROW), Rollout((), "```python\ndef double(x):\n    return x * x\n```"), fraction=False)
        assert (score.value, score.evidence["passed"], score.evidence["total"]) == (
            1.0,
            2,
            2,
        )  # 2*2 and 0*0: the test is weak
        score = humaneval(chat(**ROW), Rollout((), "```python\ndef double(x):\n    return 4\n```"), fraction=True)
        assert (score.value, score.evidence["reason"]) == (0.5, "test 2: wrong value")
        assert score.feedback == "The code fails the tests." and score.evidence["tier"] in ("bubblewrap", "landlock")
        score = humaneval(chat(**ROW), Rollout((), "```python\ndef double(x):\n    return x.y\n```"))
        assert (
            score.value == 0
            and "raises an exception" in score.feedback
            and "AttributeError" in score.evidence["reason"]
        )

    @pytest.mark.parametrize(
        ("code", "reason"),
        [
            ("def double(x:\n", "SyntaxError"),
            ("def double(x):\n    while True: pass", "no end within 1 s"),
            ("x\0y", "raised"),
            ("'\ud800'\ndef double(x):\n    return '\ud800'", "raised UnicodeEncodeError"),
            ("(" * 5000, "raised"),
            ("x = '" + "a" * 150_000 + "'", "wrong value"),
            ("import numpy", "ModuleNotFoundError"),
            ("def double(x):\n    return bytearray(2 ** 31)", "MemoryError"),
        ],
    )
    def test_programs_that_fail_get_zero_and_the_reason(self, code, reason):
        score = humaneval(chat(**ROW), Rollout((), f"```python\n{code}\n```"), timeout=1.0)
        assert score.value == 0.0 and reason in score.evidence["reason"], score.evidence
        json.dumps(score.evidence).encode()

    def test_mbpp_runs_setup_classes_of_the_response_and_challenges(self):
        node = "class Node:\n    def __init__(self, v):\n        self.v, self.next = v, None\n"
        code = f"```python\n{node}def last(n):\n    return n.v if n.next is None else last(n.next)\n```"
        row = {"test_setup_code": "a = Node(1)\na.next = Node(2)", "test_list": ["assert last(a) == 2"]}
        prompt = Prompt(
            "p",
            messages=({"role": "user", "content": "q"},),
            columns=row | {"challenge_test_list": ["assert last(a) == 3"]},
        )
        assert mbpp(prompt, Rollout((), code)).value == 1.0
        assert mbpp(prompt, Rollout((), code), challenge=True, fraction=True).value == 0.5

    def test_tests_with_helpers_and_loops_run_apart_from_the_program(self):
        check = "def check(candidate):\n    for x in range(3):\n        assert candidate(x) == helper(x)\n"
        test = f"def helper(x):\n    return x * 2\n{check}"
        row = ROW | {"test": test}
        good, bad = "def double(x):\n    return 2 * x", "def helper(x):\n    return 0\ndef double(x):\n    return 0"
        assert humaneval(chat(**row), Rollout((), good)).value == 1.0
        assert humaneval(chat(**row), Rollout((), bad)).value == 0.0
        with pytest.raises(ValueError, match="tests do not run: NameError"):
            humaneval(chat(**row | {"test": check}), Rollout((), good))

    def test_tests_see_the_exceptions_of_the_program(self):
        attempt = "    try:\n        candidate(-1)\n    except ValueError:\n        return\n    assert False\n"
        test = f"def check(candidate):\n{attempt}"
        good = "def double(x):\n    raise ValueError('no')"
        assert humaneval(chat(**ROW | {"test": test}), Rollout((), good)).value == 1.0
        assert humaneval(chat(**ROW | {"test": test}), Rollout((), good.replace("Value", "Type"))).value == 0.0

    def test_a_function_of_values_is_called(self):
        code = "```python\nclass Solution:\n    def add(self, a: List[int], b):\n        return tuple(x + b for x in a)\n```"
        lcb = {
            "public_test_cases": json.dumps([{"input": "[1, 2]\n3", "output": "[4, 5]", "testtype": "functional"}]),
            "metadata": json.dumps({"func_name": "add"}),
        }
        apps = {"input_output": json.dumps({"fn_name": "add", "inputs": [[[1, 2], 3]], "outputs": [[[4, 5]]]})}
        for row in (lcb, apps):
            assert code_stdio(Prompt("p", text="q", columns=row), Rollout((), code)).value == 1.0
            assert code_stdio(Prompt("p", text="q", columns=row), Rollout((), code.replace("x + b", "x"))).value == 0.0

    def test_a_program_of_text_is_run_once_for_each_input(self):
        row = {"inputs": ["3\n1 2 3\n", "1\n5\n", "0\n"], "outputs": ["6\n", "5", "0 \n\n"]}
        prompt = Prompt("p", text="q", columns=row)
        code = "n = int(input())\nprint(sum(map(int, input().split())) if n else 0)"
        assert code_stdio(prompt, Rollout((), code)).value == 1.0
        partly = code_stdio(prompt, Rollout((), "print(sum(map(int, open(0).read().split()[1:])) % 6)"), fraction=True)
        assert partly.value == pytest.approx(2 / 3) and partly.evidence["reason"] == "test 1: wrong output"
        late = code_stdio(prompt, Rollout((), "while 1: pass"), timeout=0.3, fraction=True)
        assert late.value == 0 and late.evidence["reason"] == "test 1: no end within 0.3 s"
        flood = code_stdio(prompt, Rollout((), "print('6\\n' * 2_000_000)"))
        assert flood.value == 0 and "wrote more than" in flood.evidence["reason"]

    def test_main_guards_and_large_inputs_work(self):
        row = {"inputs": ["1 " * 200_000], "outputs": ["200000"]}
        main = "def main():\n    print(sum(map(int, sys.stdin.read().split())))\n"
        code = f"import sys\n{main}if __name__ == '__main__':\n    main()"
        assert code_stdio(Prompt("p", text="q", columns=row), Rollout((), code)).value == 1.0


@pytest.mark.parametrize(
    ("output", "expected", "tolerance", "same"),
    [
        ("1 2\n3\n", "1 2\n3", 0, True),
        ("1  2 \n3\n\n", "1 2\n3", 0, True),
        ("1 2 3", "1 2\n3", 0, False),
        ("1.0", "1", 0, False),
        ("1.0", "1", 1e-6, True),
        ("0.3333", "0.33333333", 1e-3, True),
        ("1000001", "1000000", 1e-6, True),
        ("1000002.1", "1000000", 1e-6, False),
        ("nan", "1", 1.0, False),
        ("nan", "nan", 1.0, True),
        ("inf", "1", 1.0, False),
        ("１", "1", 1.0, False),
        ("1_0", "10", 1.0, False),
        ("", "", 0, True),
        ("x", "", 0, False),
    ],
)
def test_outputs_are_compared_word_by_word(output, expected, tolerance, same):
    assert same_output(output, expected=expected, tolerance=tolerance) is same


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({}, "expected lists of inputs and outputs"),
        ({"inputs": ["1"], "outputs": []}, "one length"),
        ({"inputs": [1], "outputs": [2]}, "expected text"),
        ({"private_test_cases": "eJw=", "public_test_cases": "[]"}, "not JSON"),
        ({"tests": {"inputs": [[1]], "outputs": [1], "fn_name": "f(); import os"}}, "name of a function"),
        ({"tests": {"inputs": [1], "outputs": [1], "fn_name": "f"}}, "lists of arguments"),
    ],
)
def test_rows_without_tests_are_refused(columns, reason):
    with pytest.raises(ValueError, match=reason):
        read_tests(Prompt("p", text="q", columns=columns))


def test_tests_may_stand_in_the_reference():
    found = read_tests(Prompt("p", text="q", reference=json.dumps({"inputs": ["1"], "outputs": ["2"]})))
    assert (found.inputs, found.outputs, found.function) == (["1"], ["2"], None)


@pytest.mark.parametrize("options", [{"timeout": 0.0}, {"timeout": 61.0}, {"memory_gb": 0.0}])
def test_limits_out_of_range_and_bad_rows_are_refused(options):
    with pytest.raises(ValueError, match="expected"):
        humaneval(chat(**ROW), Rollout((), "x"), **options)
    with pytest.raises(ValueError, match="column test "):
        humaneval(chat(prompt=HEAD), Rollout((), "x"))
    with pytest.raises(ValueError, match="test_list is empty"):
        mbpp(chat(), Rollout((), "x"))
