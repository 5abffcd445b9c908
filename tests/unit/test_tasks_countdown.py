"""Countdown: expressions are read exactly, by the rules, whatever is written."""

import random
from fractions import Fraction

import pytest

from llmrl.data.puzzles import countdown as source
from llmrl.types import Prompt, Rollout
from reward_models.countdown import LONGEST, computed, countdown, tokens_of

GIVEN = {"nums": [8, 2, 5, 1], "target": 24}


def judged(answer, columns=GIVEN, **options):
    text = f"<think>Hm.</think><answer>{answer}</answer>"
    return countdown(Prompt(id="p", text="?", columns=columns), Rollout((1,), text), **options)


@pytest.mark.parametrize(
    "answer, value",
    [
        ("8 * (5 - 2) * 1", 1.0),
        ("8*(5-2)/1", 1.0),
        ("(1*8)×(5−2)", 1.0),  # other signs for times and minus
        ("8 * 5 - 2 * 8 * 1", 0.0),  # 8 twice
        ("8 * (5 - 2)", 0.0),  # 1 left out
        ("8 + 5 + 2 + 1", 0.0),  # 16
        ("3 * 8", 0.0),
        ("24", 0.0),
        ("8 * (5 - 2) * 1 = 24", 0.0),
        ("-(2 - 5) * 8 * 1", 0.0),  # signs are no operation
        ("8 * (5 - 2 * 1", 0.0),
        ("8 * 5 - 2) * 1", 0.0),
        ("8 (5 - 2) * 1", 0.0),
        ("8 5 2 1", 0.0),
        ("()8*5*2*1", 0.0),
        ("8 * (5 - 2) * 1 +", 0.0),
        ("8 / (5 - 5) * 2 * 1", 0.0),
        ("8 ** 1 * (5 - 2)", 0.0),
        ("8 // 1 * (5 - 2)", 0.0),
        ("８ * (5 - 2) * 1", 0.0),  # a full-width digit
        ("__import__('os')", 0.0),
        ("", 0.0),
    ],
)
def test_only_the_rules_count(answer, value):
    assert judged(answer).value == value


def test_with_use_all_off_numbers_may_be_left_out_but_none_used_twice():
    assert judged("8 * (5 - 2)", use_all=False).value == 1.0
    assert judged("(8 + 8 + 8) * 1", use_all=False).value == 0.0


def test_values_are_exact_fractions():
    # 8 / (3 - 8/3) = 24, which floats only nearly give
    assert judged("8 / (3 - 8 / 3)", {"nums": [8, 8, 3, 3], "target": 24}).value == 1.0
    assert judged("1 / (1 - 2 / 3)", {"nums": [1, 1, 2, 3], "target": 3}).value == 1.0
    assert judged("7 / 0", {"nums": [7, 0], "target": 7}).feedback == "The expression divides by zero."


def test_the_parser_agrees_with_python_on_random_expressions():
    rng = random.Random(2)

    def expression(depth):
        if depth == 0 or rng.random() < 0.2:
            return str(rng.randint(1, 9))
        left, right = expression(depth - 1), expression(depth - 1)
        text = f"{left}{rng.choice('+-*/')}{right}"
        return f"({text})" if rng.random() < 0.4 else text

    compared = 0
    for _ in range(500):
        text = expression(4)
        python = "".join(f"Fraction({c})" if c.isdigit() else c for c in text)
        try:
            expected = eval(python, {"Fraction": Fraction})  # noqa: S307 - our own text
        except ZeroDivisionError:
            with pytest.raises(ArithmeticError, match="divides by zero"):
                computed(tokens_of(text))
            continue
        if len(text) <= LONGEST:
            assert computed(tokens_of(text)) == expected, text
            compared += 1
    assert compared > 400


@pytest.mark.parametrize(
    "text", ["(" * 10**6, "1+" * 10**6, "9" * 10**6, " " * 10**6, "\x00\ud800" * 100, "(" * 499 + "1"]
)
def test_hostile_text_is_wrong_and_costs_nothing(text):
    assert judged(text).value == 0.0


def test_solutions_of_the_source_are_right():
    for row in source(size=300, seed=5):
        assert judged(row["reference"], {"nums": row["nums"], "target": row["target"]}).value == 1.0


@pytest.mark.parametrize(
    "columns",
    [{}, {"nums": [1, 2]}, {"nums": "12", "target": 3}, {"nums": [1.5], "target": 3}, {"nums": [], "target": 3}],
)
def test_a_row_without_numbers_and_target_is_an_error(columns):
    with pytest.raises(ValueError, match="nums and target"):
        judged("1", columns)


def test_the_last_answer_counts_and_nothing_else_does():
    columns = {"nums": [2, 3], "target": 5}
    for text, value in [
        ("<answer>2*3</answer> no: <answer>2+3</answer>", 1.0),
        ("<answer>2+3</answer> no: <answer>2*3</answer>", 0.0),
        ("2+3", 0.0),
    ]:
        assert countdown(Prompt(id="p", text="?", columns=columns), Rollout((1,), text)).value == value
