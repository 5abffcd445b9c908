"""The recipes that come with the toolkit: each resolves, names only what exists, and says what its header says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmrl import api, catalog
from llmrl.composition import build_stage
from llmrl.config import Data
from llmrl.data.formats import to_prompt
from llmrl.options import check_options
from llmrl.plan import passes
from llmrl.pool import Pool
from llmrl.recipe import RECIPES, Recipe, resolve
from llmrl.scoring import make_scorers, score
from llmrl.types import Group, Rollout

NAMES = sorted(str(path.relative_to(RECIPES)) for path in RECIPES.rglob("*.yaml") if path.parent.name != "base")
GSM8K = {"question": "How many are 40 and 32?", "answer": "40 + 32 = 72\n#### 72"}


def recipe(name: str, *overrides: str) -> Recipe:
    return resolve(RECIPES / name, overrides)


def part_problems(kind: str, named: Any, where: str) -> list[str]:
    name, options = catalog.split_named(named)
    return check_options(catalog.get(kind, name), options, where)


def source_problems(data: Data, where: str) -> list[str]:
    return part_problems("sources", data.source, where) if isinstance(data.source, dict) else []


def problems(of: Recipe) -> list[str]:
    """Options of parts that do not exist; scorers and algorithms raise by themselves."""
    found = part_problems("models", of.run.model.make, "model.make") if of.run.model.make else []
    for stage in of.stages:
        algorithm, engine = build_stage(stage), stage.rollout.engine
        found += part_problems("engines", engine, "rollout.engine") + source_problems(stage.data, "data.source")
        passes(algorithm, online=engine != "replay")
        make_scorers(stage.scorers)
        for name, evaluation in stage.evaluation.items():
            make_scorers(evaluation.scorers)
            found += source_problems(evaluation.data, name) if evaluation.data else []
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_names_only_what_exists(name):
    assert problems(recipe(name)) == []


def test_a_misspelt_option_of_any_part_would_be_found():
    wrong = ["model.make.hiden=8", "stages.ppo.rollout.engine={name: transformers, max_row: 2}", "data.source.sise=1"]
    of = recipe("ppo_addition.yaml", *wrong)
    assert {p.split(" is not an option")[0] for p in problems(of)} == {
        *("model.make.hiden", "rollout.engine.max_row", "data.source.sise")
    }


def test_every_method_has_its_recipe_and_is_found_by_name():
    assert {Path(name).stem for name in NAMES if name.startswith("algorithms/")} == set(catalog.table("algorithms"))
    for name in catalog.table("algorithms"):
        of = resolve(f"algorithms/{name}")
        assert {stage.algorithm["name"] for stage in of.stages} == {name}
    assert resolve("sft").path == RECIPES / "sft.yaml"


def test_a_recipe_begins_with_what_it_shows_and_the_command():
    for name in NAMES:
        lines = (RECIPES / name).read_text().splitlines()
        comments = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
        short = name.removesuffix(".yaml")
        assert len(comments[0]) > 40, name
        assert any(
            f"llmrl train {n}" in line for line in comments for n in (short, Path(short).name, f"recipes/{name}")
        ), name


def test_the_reward_of_gsm8k_fits_its_prompt():
    stage = recipe("gsm8k_grpo.yaml").stages[0]
    prompt = to_prompt(GSM8K, stage.data, 1)
    asked = prompt.messages[0]["content"]
    assert all(mark in asked for mark in ("<think>", "</think>", "<answer>", "\\boxed{"))
    texts = {
        "<think>40 + 32 = 72</think><answer>\\boxed{72}</answer>": 1.1,
        "<think>40 + 32 = 71</think><answer>\\boxed{71}</answer>": 0.1,
        "The answer is \\boxed{72}.": 1.0,
        "<think>40 + 32 = 72</think><answer>72</answer>": 0.1,
    }
    scorers = make_scorers(stage.scorers)
    group = Group(prompt, tuple(Rollout((0,), text) for text in texts))
    with Pool(workers=1) as pool:
        (scored,) = score([group], scorers, stage.scoring, pool)
    rewards = [sum(s.weight * row[s.name].value for s in scorers) for row in scored.scores]
    assert rewards == pytest.approx(list(texts.values()))


def test_one_override_leaves_vllm():
    assert catalog.split_named(recipe("gsm8k_grpo.yaml").stages[0].rollout.engine)[0] == "vllm"
    assert recipe("gsm8k_grpo.yaml", "rollout.engine=transformers").stages[0].rollout.engine == "transformers"


@pytest.mark.parametrize("name", ["ppo_addition", "dpo_addition", "fcp_addition"])
def test_a_small_recipe_runs(name, tmp_path):
    of = recipe(f"{name}.yaml")
    short = [f"stages.{stage.name}.{what}" for stage in of.stages for what in ("training.steps=2", "data.limit=300")]
    metrics = api.train(of.path, [*short, f"out={tmp_path}", "tracking.panel=off"]).metrics
    asked = {name for stage in of.stages for name in stage.evaluation}
    assert {f"eval/{name}/accuracy" for name in asked} <= set(metrics)
