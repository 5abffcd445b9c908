"""The benchmarks: every published copy of a row is the same prompt, and its scorers judge it."""

import json
from pathlib import Path

import pytest

from eval import CATALOG
from eval.published import ASK
from llmrl import api, catalog
from llmrl.config import Data, Evaluation
from llmrl.data.formats import to_prompt
from llmrl.data.read import read_rows
from llmrl.errors import DataError
from llmrl.policy.tiny import byte_tokenizer
from llmrl.recipe import resolve
from llmrl.run import measurement
from llmrl.scoring import make_scorers

FOLDER = Path(__file__).parents[2].parent / "shared" / "data"
absent = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="no ../shared/data beside the checkout: published data not there"
)
HEAD = 'def add(a, b):\n    """ The sum of {a} and b. """\n'
ROWS = {
    "gsm8k": {"question": "1 {x} + 1?", "answer": "It is 2.\n#### 2"},
    "math500": {"problem": "1 {x} + 1?", "solution": "s", "answer": "2", "subject": "Algebra", "level": 1},
    "aime24": {"id": 1, "problem": "1 {x} + 1?", "solution": "s", "answer": "2", "url": "u", "year": "2024"},
    "aime25": {"problem": "1 {x} + 1?", "answer": "2", "id": "0"},
    "humaneval": {
        "task_id": "HumanEval/0",
        "prompt": HEAD,
        "canonical_solution": "    return a + b\n",
        "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
        "entry_point": "add",
    },
    "mbpp": {
        "task_id": 11,
        "text": "Write a function to add {two} numbers.",
        "code": "def add(a, b):\r\n  return a + b",
        "test_list": ["assert add(1, 2) == 3"],
        "test_setup_code": "",
        "challenge_test_list": [],
    },
}
ROWS["humaneval_completion"] = ROWS["humaneval"]


def prompt_of(name, row):
    benchmark = catalog.get("benchmarks", name)()
    return to_prompt(benchmark.adapt(row), Data(**benchmark.data), 1)


@pytest.mark.parametrize("name", CATALOG)
def test_a_published_row_becomes_a_prompt(name):
    benchmark, prompt = catalog.get("benchmarks", name)(), prompt_of(name, ROWS[name])
    if benchmark.protocol == "llmrl/boxed@1":
        assert prompt.question() == f"1 {{x}} + 1?{ASK}" and str(prompt.reference).endswith("2")
    elif name == "humaneval_completion":
        assert (prompt.text, prompt.messages) == (HEAD, None)
    else:
        assert "```python code block" in prompt.question() and (
            "{a}" in prompt.question() or "{two}" in prompt.question()
        )
        assert name != "mbpp" or prompt.question().endswith("\n\nassert add(1, 2) == 3")
    assert make_scorers(benchmark.scorers)[0].shape == "rollout"
    assert benchmark.sampling.max_tokens >= 1024 and benchmark.num_samples >= 1 and benchmark.num_rows >= 30


def test_other_copies_of_a_row_are_the_same_prompt():
    copy = {"prompt": f"1 {{x}} + 1?{ASK}", "answer": 2}
    first = prompt_of("aime24", copy)
    assert (
        first.id
        == prompt_of("aime24", ROWS["aime24"]).id
        == prompt_of("aime24", {"ID": "x", "Problem": "1 {x} + 1?", "Answer": 2}).id
    )
    assert first.question() == f"1 {{x}} + 1?{ASK}" and first.reference == "2"
    sanitized = {k: v for k, v in ROWS["mbpp"].items() if not k.startswith("test_setup")} | {
        "test_imports": ["import math"]
    }
    assert prompt_of("mbpp", sanitized).columns["test_setup_code"] == "import math"


def test_rows_that_are_no_part_of_it_are_left_out_before_the_limit_and_strange_ones_named(tmp_path):
    benchmark = catalog.get("benchmarks", "mbpp")()
    assert [benchmark.adapt(ROWS["mbpp"] | {"task_id": i}) is None for i in (10, 11, 510, 511)] == [
        True,
        False,
        False,
        True,
    ]
    file = tmp_path / "mbpp.jsonl"
    file.write_text("".join(json.dumps(ROWS["mbpp"] | {"task_id": i}) + "\n" for i in range(1, 20)))
    rows = read_rows(Data(source=str(file), limit=3), seed=0, adapt=benchmark.adapt)
    assert [row["task_id"] for row in rows] == [11, 12, 13]
    with pytest.raises(DataError, match="no column problem or Problem or prompt, only text"):
        catalog.get("benchmarks", "math500")().adapt({"text": "?"})


def test_an_evaluation_lays_its_keys_over_the_benchmark(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "2 + 2?", "answer": 4}\n{"prompt": "3 + 3?", "answer": 6}\n')
    tokenizer = byte_tokenizer([])

    def measured(**keys):
        config = Evaluation(benchmark="math500", data=Data(source=str(file)), **keys)
        return measurement(config, 8, tokenizer, 0)

    plain = measured()
    assert [p.question() for p in plain.prompts.prompts] == [f"2 + 2?{ASK}", f"3 + 3?{ASK}"]
    assert (plain.num_samples, plain.sampling.max_tokens, plain.sampling.temperature) == (8, 4096, 0.6)
    greedy = measured(temperature=0.0, top_k=20, limit=1)
    assert (greedy.num_samples, greedy.sampling.top_k, len(greedy.prompts)) == (1, 20, 1)
    assert measured(temperature=0.0, num_samples=2).num_samples == 2


def test_null_switches_an_evaluation_off(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "model: {make: tiny}\ndata: {source: addition}\nevaluation:\n  a: {data: {source: addition}, every: 2}\n"
        "  b: {data: {source: addition}}\nstages:\n- {name: one, algorithm: {name: sft}, evaluation: {a: {every: 5}}}\n"
        "- {name: two, algorithm: {name: sft}, evaluation: {b: null}}\n"
    )
    assert [list(stage.evaluation) for stage in resolve(recipe).stages] == [["a", "b"], ["a"]]
    off = resolve(recipe, ["evaluation.a=null"])
    assert [list(stage.evaluation) for stage in off.stages] == [["b"], []] and list(off.run.evaluation) == ["b"]
    again = tmp_path / "again.yaml"
    again.write_text(off.text)
    assert [list(stage.evaluation) for stage in resolve(again).stages] == [["b"], []]


WHOLE = {  # benchmark -> (file, column with the published solution, how many there are)
    "gsm8k": ("gsm8k_test.jsonl", "answer", 1319),
    "humaneval_completion": ("humaneval.jsonl", "canonical_solution", 164),
    "mbpp": ("mbpp.jsonl", "code", 500),
}


@pytest.mark.real_data
@absent
@pytest.mark.parametrize("name", WHOLE)
def test_published_solutions_score_a_hundred_per_cent_through_the_whole_path(name):
    file, column, number = WHOLE[name]
    said = api.score(FOLDER / file, benchmark=name, overrides=[f"data.columns.completion={column}"])
    assert f"accuracy 100.0 % ({'99.7' if number == 1319 else '97.7' if number == 164 else '99.2'} to 100.0)" in said
    assert f"{number:,} answers to {number:,} prompts" in said and "0 errors" in said


@pytest.mark.real_data
@absent
@pytest.mark.parametrize(
    ("name", "file"), [("math500", "math500.jsonl"), ("aime24", "aime24.jsonl"), ("aime25", "aime25.jsonl")]
)
def test_published_problems_load_whole(name, file):
    benchmark = catalog.get("benchmarks", name)()
    rows = read_rows(Data(source=str(FOLDER / file)), seed=0, adapt=benchmark.adapt)
    assert len(rows) == benchmark.num_rows and not any(row["problem"].endswith("\\boxed{}.") for row in rows)
    assert all(to_prompt(row, Data(**benchmark.data), 1).reference for row in rows)
