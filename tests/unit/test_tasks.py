import re

import pytest

from llmrl import catalog
from llmrl.config import Data
from llmrl.data.formats import to_prompt
from llmrl.data.tasks import (
    addition,
    addition_demonstrations,
    addition_pairs,
    arithmetic_chain,
    arithmetic_demonstrations,
)
from llmrl.errors import DataError

SOURCES = [arithmetic_chain, arithmetic_demonstrations, addition, addition_demonstrations, addition_pairs]


def question(row):
    return row["prompt"][0]["content"]


def value(text):
    """The value of a chain such as 37-2-2, read left to right."""
    return sum(int(term) for term in re.findall(r"[+-]?\d+", text.rstrip("=")))


@pytest.mark.parametrize("source", SOURCES)
def test_references_are_right_and_rows_convert(source):
    for number, row in enumerate(source(size=200, seed=3), 1):
        assert row["reference"] == str(value(question(row)))
        prompt = to_prompt(row, Data(source="x"), number)
        assert prompt.messages == ({"role": "user", "content": question(row)},)
        assert prompt.reference == row["reference"] and prompt.columns == {"reference": row["reference"]}


@pytest.mark.parametrize("source", SOURCES)
def test_rows_depend_on_size_and_seed_alone(source):
    rows = source(size=30, seed=3)
    assert rows == source(size=30, seed=3) == source(size=50, seed=3)[:30]
    assert rows != source(size=30, seed=4)


@pytest.mark.parametrize("source", SOURCES)
def test_train_and_test_never_share_a_problem(source):
    train = {question(row) for seed in range(3) for row in source(size=2000, seed=seed)}
    test = {question(row) for seed in range(3) for row in source(size=2000, seed=seed, split="test")}
    assert train and test and not train & test
    with pytest.raises(DataError, match="'dev'"):
        source(split="dev")


@pytest.mark.parametrize("source", SOURCES)
def test_the_catalog_names_the_source_and_reads_its_options(source):
    assert catalog.get("sources", source.__name__) is source
    assert {"size", "seed", "split"} <= catalog.options_of(source).keys() and catalog.inputs_of(source) == []


def test_chains_stay_between_0_and_99():
    for row in arithmetic_chain(size=500):
        terms = re.findall(r"[+-]?\d+", question(row))
        assert 3 <= len(terms) <= 5 and 1 <= int(terms[0]) <= 50
        assert all(0 <= sum(map(int, terms[:n])) <= 99 for n in range(1, len(terms) + 1))


def test_demonstrations_think_in_the_share_asked_for_and_guess_near():
    rows = arithmetic_demonstrations(size=2000, seed=1)
    thought = right = 0
    for row in rows:
        text, reference = row["completion"][0]["content"], int(row["reference"])
        steps = re.fullmatch(r"(?:<think>(.*)</think>)?<answer>(\d+)</answer>", text)
        thought += steps.group(1) is not None
        if steps.group(1) is not None:
            assert int(steps.group(2)) == reference
            # 37-2=35-2=33: without its results a worked answer is the question
            assert re.sub(r"=\d+", "", steps.group(1)) == question(row)
            right += 1
        else:
            assert abs(int(steps.group(2)) - reference) <= 10
            right += int(steps.group(2)) == reference
    assert 0.36 < thought / 2000 < 0.44  # 0.4, sd 0.011
    assert 0.41 < right / 2000 < 0.49  # 0.4 and about 0.6 / 21 of lucky guesses, and those that are cut to 0
    exact = arithmetic_demonstrations(size=50, think_share=0.0, sloppy=0)
    assert all(row["completion"][0]["content"] == f"<answer>{row['reference']}</answer>" for row in exact)


def test_sums_come_round_only_when_all_have_been():
    train, test = addition(size=1000), addition(size=1000, split="test")
    sizes = [len({question(row) for row in rows}) for rows in (train, test)]
    assert sum(sizes) == 400
    assert len({question(row) for row in train[: sizes[0]]}) == sizes[0]


def test_addition_demonstrations_are_right_as_often_as_asked():
    rows = addition_demonstrations(size=1000, accuracy=0.5)
    errors = [int(row["completion"][0]["content"]) - int(row["reference"]) for row in rows]
    assert 0.45 < errors.count(0) / 1000 < 0.55  # sd 0.016
    assert max(map(abs, errors)) == 5
    assert all(row["completion"][0]["content"] == row["reference"] for row in addition_demonstrations(size=100))


def test_pairs_choose_the_right_side():
    for row in addition_pairs(size=300):
        chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
        assert chosen == row["reference"] != rejected and 1 <= abs(int(rejected) - int(chosen)) <= 5
        assert int(rejected) >= 0
