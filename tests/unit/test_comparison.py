"""Recipes against each other: paired differences over seeds, verdicts in words, and runs that are made once only."""

from __future__ import annotations

import json
import math
import sys
import xml.etree.ElementTree as ET
from statistics import fmean, stdev
from types import SimpleNamespace

import pytest

from llmrl import comparison, trials
from llmrl.cli import main
from llmrl.errors import LlmrlError
from llmrl.ops.intervals import Interval, over_seeds, student_quantile

RECIPE = "model: {make: tiny}\ndata: {source: addition}\nalgorithm: {name: grpo}\nscorers: [math_answer]\n"


def run(*accuracies: float, reward: float = 0.0, name: str = "eval/test/accuracy") -> list[dict]:
    """Metrics rows: a measurement before every step but the last, and a reward for each step."""
    rows = [{"stage": "rl", "step": i, "global_step": i, name: a} for i, a in enumerate(accuracies)]
    return rows + [{"stage": "rl", "step": i, "global_step": i, "reward/mean": reward} for i in range(1, 21)]


@pytest.mark.parametrize(
    "freedom, expected",  # printed tables of Student's t, two-sided 95 %
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (10, 2.228), (30, 2.042), (120, 1.980)],
)
def test_students_quantiles_are_those_of_the_tables(freedom, expected):
    assert student_quantile(freedom) == pytest.approx(expected, abs=6e-4)


def test_the_interval_over_seeds():
    # mean 2, s = 1, n = 3: 2 ± 4.3027 / √3
    assert over_seeds([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2 - 2.4841, 2 + 2.4841), abs=1e-4)
    assert over_seeds([0.5]) == (0.5, -math.inf, math.inf)
    assert over_seeds([0.25, 0.25]) == (0.25, 0.25, 0.25)


def test_differences_are_paired_seed_by_seed():
    # seeds differ by far more than the recipes: unpaired nothing could be told
    runs = {
        "grpo": {0: run(0.1, 0.2), 1: run(0.1, 0.5), 2: run(0.1, 0.8)},
        "dapo": {0: run(0.1, 0.25), 1: run(0.1, 0.56), 2: run(0.1, 0.84)},
        "rloo": {0: run(0.1, 0.1), 1: run(0.1, 0.6), 2: run(0.1, 0.8)},
    }
    first, second, third = comparison.compare(runs).results
    assert first.difference is None and first.values == {0: 0.2, 1: 0.5, 2: 0.8}
    gains = [0.05, 0.06, 0.04]
    half = 4.3027 * stdev(gains) / math.sqrt(3)
    assert second.difference == pytest.approx((fmean(gains), fmean(gains) - half, fmean(gains) + half), abs=1e-5)
    assert (second.verdict, third.verdict) == ("better", "not distinguishable")
    text = comparison.table(comparison.compare(runs))
    assert "dapo is better than grpo.\nrloo and grpo are not distinguishable." in text
    assert "+0.05 (+0.0252 to +0.0748)" in text and "seeds 0, 1, 2, paired" in text


@pytest.mark.parametrize(
    "difference, metric, expected",
    [
        (Interval(-0.1, -0.2, -0.05), "eval/x/accuracy", "worse"),
        (Interval(-0.1, -0.2, -0.05), "rollout/length", "lower"),
        (Interval(0.1, 0.05, 0.2), "policy/entropy", "higher"),
        (Interval(0.1, 0.0, 0.2), "reward/mean", "not distinguishable"),
        (Interval(0.4, -math.inf, math.inf), "reward/mean", "not distinguishable"),
        (Interval(0.0, 0.0, 0.0), "reward/mean", "not distinguishable"),
    ],
)
def test_the_verdict(difference, metric, expected):
    assert comparison.verdict(difference, metric) == expected


def test_an_accuracy_is_the_last_one_and_a_reward_the_mean_of_the_last_tenth():
    rows = [{"stage": "rl", "step": i, "global_step": i, "reward/mean": float(i)} for i in range(1, 31)]
    assert comparison.value_of(rows, "reward/mean") == 29.0  # of 28, 29, 30
    assert comparison.value_of(run(0.1, 0.7, 0.4), "eval/test/accuracy") == 0.4


def test_recipes_without_a_common_metric_are_told_what_each_has():
    runs = {"a": {0: [{"global_step": 1, "loss/total": 1.0}]}, "b": {0: [{"global_step": 1, "reward/mean": 1.0}]}}
    with pytest.raises(LlmrlError, match="a has loss/total; b has reward/mean"):
        comparison.compare(runs)
    with pytest.raises(LlmrlError, match="^b: no metric 'loss/total'. Common: nothing."):
        comparison.compare(runs, "loss/total")
    runs = {"a": {0: run(0.1, reward=0.5)}, "b": {0: run(0.2, reward=0.75, name="eval/other/accuracy")}}
    found = comparison.compare(runs)
    assert found.metric == "reward/mean" and found.results[1].difference.mean == 0.25
    with pytest.raises(LlmrlError, match="no metric 'reward/men'. Did you mean reward/mean"):
        comparison.compare(runs, "reward/men")


def test_the_page_and_the_drawing_are_whole_and_hold_every_recipe():
    runs = {"a<b": {0: run(0.1, 0.2), 1: run(0.1, 0.3)}, "c&d": {0: run(0.1, 0.4), 1: run(0.1, 0.6)}}
    found = comparison.compare(runs)
    drawing = ET.fromstring(comparison.standalone(comparison.differences(found)))
    assert any("c&d" in (text.text or "") for text in drawing.iter("{http://www.w3.org/2000/svg}text"))
    html = comparison.report(found, runs, ["llmrl train x"])
    assert "a&lt;b" in html and "a<b" not in html.split("<script")[0] and "llmrl train x" in html
    one_seed = comparison.compare({name: {0: by_seed[0]} for name, by_seed in runs.items()})
    kept = json.loads(comparison.as_json(one_seed))["results"][1]
    assert kept["difference"] == [pytest.approx(0.2), None, None] and kept["verdict"] == "not distinguishable"
    assert "one seed has no interval" in comparison.table(one_seed)
    ET.fromstring(comparison.standalone(comparison.differences(one_seed)))


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(RECIPE)
    return ["one.yaml", "two.yaml"]


@pytest.fixture
def children(monkeypatch):
    """Processes that write a finished run in place of `llmrl train`; those named in `broken` fail."""
    script = """
import json, pathlib, sys
words = dict(w.split("=", 1) for w in sys.argv[1:] if "=" in w)
print("about", words["name"])
if words["name"] in {broken}: sys.exit("RecipeError: broken")
from llmrl.recipe import resolve
folder = pathlib.Path(words["out"]) / words["name"]
folder.mkdir(parents=True)
(folder / "recipe.yaml").write_text(resolve(sys.argv[1], sys.argv[2:]).text)
value = int(words["seed"]) / 10 + (words["name"].startswith("two") and 0.05)
row = dict(stage="rl", step=1, global_step=1) | {{"eval/test/accuracy": value}}
(folder / "metrics.jsonl").write_text(json.dumps(row) + chr(10))
(folder / "result.json").write_text("{{}}")
"""
    made = SimpleNamespace(broken=[], started=[])
    popen = trials.subprocess.Popen

    def started(command, **options):
        assert command[:4] == [sys.executable, "-m", "llmrl.cli", "train"] and options["env"]["OMP_NUM_THREADS"] == "1"
        made.started.append(next(w for w in command if w.startswith("name=")).removeprefix("name="))
        return popen([sys.executable, "-c", script.format(broken=made.broken), *command[4:]], **options)

    monkeypatch.setattr(trials.subprocess, "Popen", started)
    monkeypatch.setattr(trials, "POLL", 0.02)
    return made


def test_compare_runs_what_is_missing_and_says_what_differs(recipes, children, tmp_path, capsys):
    words = ["compare", *recipes, "--seeds", "2", "--out", "out", "training.steps=3"]
    assert main(words) == 0
    assert sorted(children.started) == ["one-seed0", "one-seed1", "two-seed0", "two-seed1"]
    assert "two is better than one." in capsys.readouterr().out
    assert json.loads((tmp_path / "out/comparison.json").read_text())["metric"] == "eval/test/accuracy"
    assert {"comparison.html", "comparison.svg"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert main([*words[:4], "3", *words[5:]]) == 0
    assert sorted(children.started[4:]) == ["one-seed2", "two-seed2"]  # the rest was there
    assert main(["compare", *recipes, "--seeds", "2", "--out", "out", "training.steps=4"]) == 2
    assert "out/one-seed0 holds a run of another recipe than one.yaml is now" in capsys.readouterr().err


def test_a_run_that_fails_is_named_with_its_last_words_and_made_again(recipes, children, tmp_path, capsys):
    children.broken = ["two-seed0"]
    (tmp_path / "out/one-seed0").mkdir(parents=True)  # begun, but without a checkpoint: begun anew
    (tmp_path / "out/one-seed0/metrics.jsonl").write_text("")
    assert main(["compare", *recipes, "--seeds", "1", "--out", "out"]) == 2
    assert "two-seed0 failed: RecipeError: broken (out/two-seed0.log)" in capsys.readouterr().err
    children.broken = []
    assert main(["compare", *recipes, "--seeds", "1", "--out", "out"]) == 0
    assert sorted(children.started) == ["one-seed0", "two-seed0", "two-seed0"]
    assert "two and one are not distinguishable." in capsys.readouterr().out


def test_what_cannot_be_compared_is_refused_before_anything_runs(recipes, children, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/one.yaml").write_text(RECIPE)
    assert main(["compare", "one.yaml"]) == main(["compare", "one.yaml", "other/one.yaml"]) == 2
    assert main(["compare", *recipes, "seed=x"]) == 2
    error = capsys.readouterr().err
    assert "found 1 recipes and 3 seeds, expected at least two" in error and "recipes of one name" in error
    assert "override: seed" in error and not children.started
    with trials.alone(tmp_path / "out"):
        assert main(["compare", *recipes, "--out", "out"]) == 2
    assert "in use by another process" in capsys.readouterr().err and not children.started


def test_recipes_are_called_by_their_place():
    names = ("quickstart", "algorithms/grpo", "base/addition.yaml")
    assert [trials.label(trials.RECIPES / name) for name in names] == ["quickstart", "grpo", "base-addition"]


def test_curves_are_drawn_by_stage_where_all_runs_have_the_same():
    rows = [
        {"stage": "warm-up", "step": 5, "global_step": 5, "loss": 1.0},
        {"stage": "rl", "step": 0, "global_step": 5, "eval/test/accuracy": 0.25},
        {"stage": "rl", "step": 2, "global_step": 7, "eval/test/accuracy": 0.5},
    ]
    higher = [row | {"eval/test/accuracy": 1.0} if row["step"] == 2 else row for row in rows]
    alike = comparison.curves({"a": {0: rows, 1: higher}, "b": {0: rows, 1: rows}}, "eval/test/accuracy")
    assert alike.hover["at"] == ["step 0", "step 2"]  # of the stage that has it
    assert alike.hover["series"][0]["text"] == ["25.0 %", "75.0 % (50.0 % to 100.0 %)"]
    other = [row | {"stage": "ppo"} for row in rows[1:]]
    apart = comparison.curves({"a": {0: rows}, "b": {0: other}}, "eval/test/accuracy")
    assert apart.hover["at"] == ["step 5", "step 7"]
