"""The generated tasks: references are right by an independent way of finding them, and rows are what scorers read."""

import random

import pytest

from llmrl import catalog
from llmrl.config import Data
from llmrl.data.code_fix import FUNCTIONS, code_fix
from llmrl.data.formats import to_prompt
from llmrl.data.puzzles import (
    base_conversion,
    bracket_closing,
    countdown,
    instruction_format,
    letter_count,
    sorting,
)
from llmrl.errors import DataError

SOURCES = [countdown, sorting, letter_count, bracket_closing, base_conversion, instruction_format, code_fix]


def question(row):
    return row["prompt"][0]["content"]


@pytest.mark.parametrize("source", SOURCES)
def test_rows_depend_on_size_and_seed_alone_and_become_prompts(source):
    rows = source(size=30, seed=3)
    assert rows == source(size=30, seed=3) == source(size=50, seed=3)[:30]
    assert rows != source(size=30, seed=4)
    for number, row in enumerate(rows, 1):
        prompt = to_prompt(row, Data(source="x"), number)
        assert prompt.question() == question(row) and prompt.reference == row.get("reference")
    assert catalog.get("sources", source.__name__) is source


@pytest.mark.parametrize("source", SOURCES)
def test_train_and_test_never_share_a_problem(source):
    train = {question(row) for row in source(size=1000)}
    test = {question(row) for seed in range(3) for row in source(size=200, seed=seed, split="test")}
    assert len(test) > 5 and not train & test
    with pytest.raises(DataError, match="'dev'"):
        source(split="dev")


def test_a_countdown_solution_uses_every_number_once_and_makes_the_target():
    for row in countdown(size=200, seed=1, num_numbers=5, largest=12):
        assert sorted(map(int, "".join(c if c.isdigit() else " " for c in row["reference"]).split())) == sorted(
            row["nums"]
        )
        assert abs(eval(row["reference"]) - row["target"]) < 1e-9  # noqa: S307 - our own text
        assert 1 <= row["target"] <= 100 and row["target"] not in row["nums"] and len(row["nums"]) == 5
        assert str(row["nums"]) in question(row) and f"make {row['target']}." in question(row)


def test_lists_are_sorted_the_way_that_is_asked():
    ways = set()
    for row in sorting(size=200, num_numbers=5, largest=30):
        way, given = question(row).split(": ")[0], question(row).split(": ")[1].split(".")[0]
        expected = sorted(map(int, given.split()), reverse=way.endswith("largest to smallest"))
        assert row["reference"] == " ".join(map(str, expected)) and len(expected) == 5 and max(expected) <= 30
        ways.add(way)
    assert len(ways) == 2


def test_letters_are_counted():
    counts = set()
    for row in letter_count(size=300):
        words = question(row).split()
        letter, text = words[words.index("letter") + 1], words[words.index("in") + 1].rstrip("?")
        assert int(row["reference"]) == sum(one == letter for one in text)
        counts.add(row["reference"])
    assert {"0", "1", "2"} <= counts


def test_what_is_left_open_is_closed():
    for row in bracket_closing(size=300, length=9):
        text = question(row).split("still open in ")[1].split(" ")[0]
        assert len(text) == 9
        whole = text + row["reference"]
        for _ in range(len(whole)):  # pairs that touch vanish; a right sequence leaves nothing
            for pair in ("()", "[]", "{}"):
                whole = whole.replace(pair, "")
        assert whole == "" and row["reference"] and not set(row["reference"]) & set("([{")


def test_numbers_are_converted():
    for row in base_conversion(size=300, largest=500):
        digits, old, new = question(row).split()[1].rstrip(","), question(row).split()[6], question(row).split()[9]
        value = int(digits, int(old.rstrip(",")))
        assert value <= 500 and value == int(row["reference"], int(new.rstrip(".")))
        assert old != new and row["reference"] == row["reference"].lower()


def test_instructions_stand_in_the_question_and_in_the_columns():
    for row in instruction_format(size=100, num_instructions=3, words=40):
        assert len(row["instruction_id_list"]) == len(row["kwargs"]) == len(set(row["instruction_id_list"])) == 3
        for name, given in zip(row["instruction_id_list"], row["kwargs"], strict=True):
            if name == "length_constraints:number_words":
                assert f"fewer than {given['num_words']} words" in question(row) and 20 <= given["num_words"] <= 40
            elif name == "punctuation:no_comma":
                assert "no commas" in question(row)


def run(code, tests):
    """How many of the assertions hold."""
    passed = 0
    for test in tests:
        try:
            exec(f"{code}\n{test}", {})  # noqa: S102 - our own text
            passed += 1
        except AssertionError:
            pass
    return passed


def test_mended_code_passes_and_given_code_fails():
    for row in code_fix(size=150, num_tests=4):
        given = question(row).split("```python\n")[1].split("```")[0]
        assert run(row["reference"], row["test_list"]) == 4 > run(given, row["test_list"])
        assert row["test_list"][0] in question(row) and row["reference"] not in question(row)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_a_mistake_computes_is_what_its_text_computes(name):
    function, rng = FUNCTIONS[name], random.Random(5)
    right = {one.place: one.right for one in function.mistakes} | {"name": name}
    for mistake in function.mistakes:
        space = {}
        exec(function.text.format(**right | {mistake.place: mistake.wrong}), space)  # noqa: S102 - our own text
        cases = [function.draw(rng) for _ in range(100)]
        assert [space[name](*case) for case in cases] == [mistake.compute(*case) for case in cases]
        assert any(mistake.compute(*case) != function.compute(*case) for case in cases)


@pytest.mark.parametrize(
    "make, named",
    [
        (lambda: countdown(num_numbers=1), "num_numbers"),
        (lambda: sorting(num_numbers=0), "num_numbers"),
        (lambda: instruction_format(words=10), "words"),
        (lambda: instruction_format(num_instructions=5), "num_instructions"),
        (lambda: base_conversion(size=5, largest=0), "largest"),
        (lambda: countdown(size=5, num_numbers=2, largest=2, split="test"), "no test problem"),
    ],
)
def test_options_that_leave_no_problem_are_refused(make, named):
    with pytest.raises(DataError, match=named):
        make()
