"""Recipes: what is read, how files, stages and overrides lie over one another, and what a spoiled one is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from llmrl import catalog
from llmrl.config import Run
from llmrl.errors import RecipeError
from llmrl.foreign import FOREIGN
from llmrl.problems import leaves, section_at
from llmrl.recipe import RECIPES, resolve
from llmrl.recipe_file import parse

SPOILED = yaml.safe_load((Path(__file__).parents[1] / "recipes" / "spoiled.yaml").read_text())
GOOD = "model: {make: tiny}\ndata: {source: addition}\nalgorithm: {name: grpo}\n"
STAGED = (
    GOOD
    + """training: {steps: 9}
stages:
  - {name: warm, algorithm: {name: sft}, training: {learning_rate: 1e-3}}
  - {name: rl, algorithm: {kl_coef: 0.1}, data: {limit: 5}}
"""
)


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def file(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return name

    return file


def problems_of(path: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        resolve(path, overrides)
    return caught.value.problems


@pytest.mark.parametrize("case", SPOILED, ids=lambda case: case["title"])
def test_a_spoiled_recipe_gets_exactly_these_problems(write, case):
    keys = {
        f"<keys of {k}>": ", ".join(s.model_fields) for k in Run.model_fields if (s := section_at(Run, (k,))) != Run
    }
    numbers = {f"<number of {kind}>": str(len(table)) for kind, table in catalog.TABLES.items()}
    expected = case["problems"]
    for word, meaning in {**keys, **numbers, "{recipes}": str(RECIPES)}.items():
        expected = [problem.replace(word, meaning) for problem in expected]
    found = problems_of(write("spoiled.yaml", case["recipe"]))
    assert [p.removeprefix("spoiled.yaml:").lstrip() for p in found] == expected


def test_all_problems_of_a_file_come_at_once(write):
    path = write("r.yaml", "model: {make: tine}\ndata: {sorce: x}\nlr: 1\ntraining: {steps: a}\nseed: 1\nseed: 2\n")
    found = problems_of(path)
    about = [
        "seed is set twice",
        "lr is not a key",
        "data.source is missing",
        "data.sorce",
        "training.steps: found 'a'",
    ]
    about += ["algorithm is missing", "no model named 'tine'"]
    assert len(found) == 7 and all(sum(part in problem for problem in found) == 1 for part in about)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5), ("1E5", 1e5), ("1.5e3", 1500.0), ("-2e-4", -2e-4), ("+.5", 0.5), ("012", 12), ("-3", -3),
        ("off", "off"), ("no", "no"), ("Yes", "Yes"), ("true", True), ("FALSE", False), ("~", None), ("", None),
        ("1:30", "1:30"), ("2024-01-01", "2024-01-01"), ("1_000", "1_000"), ("'1e-5'", "1e-5"), ("v1.0", "v1.0"),
    ],
)  # fmt: skip
def test_plain_words(text, value):
    read = parse(f"key: {text}", "f", [])[0]["key"]
    assert read == value and type(read) is type(value)


def test_aliases_and_merge_keys(write):
    text = "model: {make: tiny}\ndata: &d {source: addition, limit: 3}\nalgorithm: {name: grpo}\nevaluation:\n" \
           "  a: {data: {<<: *d, limit: 4}}\n"  # fmt: skip
    recipe = resolve(write("r.yaml", text))
    assert recipe.run.evaluation["a"].data.source == "addition" and recipe.run.evaluation["a"].data.limit == 4
    assert recipe.origins["evaluation.a.data.source"] == "r.yaml:2"
    assert recipe.origins["evaluation.a.data.limit"] == "r.yaml:5"


def test_the_first_of_several_merged_mappings_wins():
    values, _ = parse("a: &a {x: 1}\nb: &b {x: 2, y: 2}\nc: {<<: [*a, *b]}\n", "f", [])
    assert values["c"] == {"x": 1, "y": 2}


def test_aliases_that_explode_or_hold_themselves_are_refused(write):
    laughs = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 30))
    assert "expands to more than 10000 values" in problems_of(write("laughs.yaml", laughs))[0]
    assert "an alias of itself" in problems_of(write("self.yaml", "a: &a {b: *a}\n"))[0]
    assert "an alias of itself" in problems_of(write("merge.yaml", "a: &a {<<: *a}\n"))[0]


def test_bases_are_laid_in_order_under_the_file(write):
    write("one.yaml", GOOD + "training: {steps: 1, warmup_steps: 1, betas: [0.5, 0.5]}\n")
    write("two.yaml", "training: {steps: 2, save_every: 2}\nscorers: [a:b]\n")
    recipe = resolve(write("r.yaml", "base: [one.yaml, two.yaml]\ntraining: {betas: [0.1, 0.2]}\n"))
    training = recipe.run.training
    assert (training.steps, training.warmup_steps, training.save_every, training.betas) == (2, 1, 2, [0.1, 0.2])
    assert recipe.run.name == "r" and recipe.run.scorers == ["a:b"]
    origins = [recipe.origins[f"training.{key}"] for key in ("steps", "warmup_steps", "betas", "schedule")]
    assert origins == ["two.yaml:1", "one.yaml:4", "r.yaml:2", "default"]


def test_bases_in_a_circle_are_refused(write):
    write("a.yaml", "base: b.yaml\n")
    write("b.yaml", "base: a.yaml\n")
    assert problems_of("a.yaml") == ["a.yaml: base goes in a circle: a.yaml → b.yaml → a.yaml."]


def test_another_name_replaces_the_options_that_went_with_the_old_one(write):
    write("one.yaml", "model: {make: tiny}\ndata: {source: addition}\nalgorithm: {name: grpo, kl_coef: 0.1}\n")
    same = resolve(write("same.yaml", "base: one.yaml\nalgorithm: {name: grpo, epochs: 2}\n"))
    other = resolve(write("other.yaml", "base: one.yaml\nalgorithm: {name: dpo, beta: 0.2}\n"))
    assert same.run.algorithm == {"name": "grpo", "kl_coef": 0.1, "epochs": 2}
    assert other.run.algorithm == {"name": "dpo", "beta": 0.2} and "algorithm.kl_coef" not in other.origins


def test_overrides_in_every_form(write):
    path = write("r.yaml", GOOD)
    words = ["training.steps=3", "--training.learning_rate=2e-4", "--seed", "-5", "data.system="]
    recipe = resolve(path, [*words, "rollout.engine={name: replay}", "training.betas=[0.5, 0.9]"])
    training = recipe.run.training
    assert (training.steps, training.learning_rate, recipe.run.seed) == (3, 2e-4, -5)
    assert recipe.run.data.system is None and recipe.run.rollout.engine == {"name": "replay"}
    assert training.betas == [0.5, 0.9] and recipe.origins["training.betas"] == "override"
    assert recipe.origins["data.source"] == "r.yaml:2" and recipe.origins["seed"] == "override"


def test_spoiled_overrides(write):
    path = write("r.yaml", GOOD)
    assert problems_of(path, "+seed=1", "seed", "a..b=1", "out=[", "--out") == [
        "override '+seed=1': + is not needed here; write seed=1.",
        "override 'seed': expected key.sub=value, such as training.steps=100.",
        "override 'a..b=1': expected key.sub=value, such as training.steps=100.",
        "override out:1:2: not YAML: while parsing a flow node: expected the node content, but found '<stream end>'.",
        "override '--out': expected key.sub=value, such as training.steps=100.",
    ]
    assert problems_of(path, "seed=1.5") == ["override: seed: found 1.5, expected a whole number."]


def test_one_stage_where_none_is_named(write):
    (stage,) = resolve(write("r.yaml", GOOD)).stages
    assert stage.name == "grpo" and stage.data.source == "addition" and stage.algorithm == {"name": "grpo"}


def test_stages_are_laid_over_the_recipe(write):
    recipe = resolve(write("r.yaml", STAGED))
    warm, rl = recipe.stages
    assert warm.algorithm == {"name": "sft"} and rl.algorithm == {"name": "grpo", "kl_coef": 0.1}
    assert (warm.training.steps, warm.training.learning_rate) == (9, 1e-3) and rl.training.learning_rate == 1e-6
    assert (warm.data.limit, rl.data.limit, rl.data.source) == (None, 5, "addition")
    assert rl.origins["data.limit"] == "r.yaml:7" and rl.origins["training.steps"] == "r.yaml:4"
    assert recipe.origins["stages.rl.data.limit"] == "r.yaml:7" and warm.origins["rollout.top_p"] == "default"


def test_overrides_reach_stages_by_name_and_never_vanish(write):
    path = write("r.yaml", STAGED)
    warm, rl = resolve(path, ["stages.warm.training.steps=2", "training.steps=4"]).stages
    assert (warm.training.steps, rl.training.steps) == (2, 4)
    assert problems_of(path, "stages.warn.training.steps=2") == [
        "override: stages has no item named 'warn'. Did you mean warm? Items: warm, rl."
    ]
    both = [f"stages.{name}.training.steps=1" for name in ("warm", "rl")]
    assert resolve(path, [*both]).stages[1].training.steps == 1
    again = write("again.yaml", STAGED.replace("data: {limit: 5}", "training: {learning_rate: 1e-4}"))
    assert problems_of(again, "training.learning_rate=1e-2") == [
        "override training.learning_rate: every stage sets it again, so it would change nothing. Write "
        "stages.warm.training.learning_rate or stages.rl.training.learning_rate."
    ]


def test_the_text_reads_back_to_the_same_run(write):
    path = write("r.yaml", STAGED + 'name: "off"\ndata: {source: addition, system: "a: #1\\n\'2e3\'", user: "1e-5"}\n')
    path = write("r.yaml", Path(path).read_text().replace("data: {source: addition}\n", "", 1))
    recipe = resolve(path)
    for text in (recipe.text, recipe.annotated):
        again = resolve(write("again.yaml", text))
        assert again.run == recipe.run and again.run.data.user == "1e-5" and again.run.name == "off"
        assert [s.model_dump(exclude={"origins"}) for s in again.stages] == [
            s.model_dump(exclude={"origins"}) for s in recipe.stages
        ]


def test_own_problems_are_told_within_a_second_and_without_torch(write):
    path = write("r.yaml", GOOD + "trainning: {}\n")
    code = f"""
import sys, time
from llmrl.recipe import RECIPES, resolve
from llmrl.errors import RecipeError
try: resolve({path!r}); raise SystemExit("no problem found")
except RecipeError: pass
assert time.process_time() < 1, time.process_time()
assert not {{"torch", "transformers", "datasets", "vllm"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_foreign_name_points_at_a_key_that_exists():
    known = {dotted for dotted, _ in leaves(Run)} | {dotted.split(".")[0] for dotted, _ in leaves(Run)} | {"model.lora"}
    for theirs, our in FOREIGN.items():
        key = our.split(" ")[0].rstrip(":")
        assert key in known or key.startswith("algorithm."), f"{theirs} → {key}"


def test_a_name_that_would_lead_out_of_the_runs_folder_is_refused(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("model: {path: x}\ndata: {source: addition}\nstages: [{name: ../victim, algorithm: {name: sft}}]\n")
    with pytest.raises(RecipeError, match="name"):
        resolve(path)
