"""The command line: light to start, clear when it refuses, and faithful in what it hands on."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

import llmrl
from llmrl import recipe as recipes
from llmrl.cli import main

GOOD = "model: {make: tiny}\ndata: {source: addition}\nalgorithm: {name: sft}\n"


@pytest.fixture
def calls(monkeypatch):
    made = []
    api = SimpleNamespace(
        train=lambda **options: made.append(("train", options)),
        check=lambda recipe, **options: made.append(("check", str(recipe), options)) or "a preview",
        evaluate=lambda target, **options: made.append(("evaluate", target, options)) or "a table",
        score=lambda file, **options: made.append(("score", file, options)) or "a verdict",
        compare=lambda *folders: made.append(("compare", *folders)) or "no difference",
    )
    monkeypatch.setitem(sys.modules, "llmrl.api", api)
    monkeypatch.setattr(llmrl, "api", api, raising=False)
    return made


@pytest.fixture
def good(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.yaml").write_text(GOOD)
    return "good.yaml"


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["trian"], ["train", "nonesuch"]])
def test_help_and_refusals_are_light(words):
    code = f"""
import sys, time
from llmrl.cli import main
try: main({words!r})
except SystemExit: pass
assert not {{"torch", "transformers", "datasets", "vllm"}} & set(sys.modules)
assert {words!r} != ["--help"] or time.process_time() < 0.4, time.process_time()
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_help_of_train_names_the_keys_of_a_recipe(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 60
    assert "training: steps, learning_rate" in text and "rollout: engine, prompts_per_step, group_size" in text


def test_an_unknown_command_gets_the_nearest(capsys):
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == (
        "llmrl: no command 'trian'. Did you mean train? Commands: train, eval, compare, show, check, list, report, "
        "score, serve, demo.\n"
    )


def test_train_hands_on_overrides_and_processes(calls, good):
    assert main(["train", good, "rollout.top_k=2", "--num-processes", "2", "--seed", "-5"]) == 0
    name, options = calls[0]
    assert name == "train" and options["num_processes"] == 2 and str(options["recipe"]) == good
    assert options["overrides"] == ["rollout.top_k=2", "--seed", "-5"]


def test_eval_and_check_hand_on(calls, good, capsys):
    assert main(["eval", "runs/x", "--bench", "gsm8k,math500", "--bench", "aime24", "seed=1", "--out", "o"]) == 0
    assert main(["check", good, "seed=2"]) == 0
    assert calls[0] == (
        "evaluate",
        "runs/x",
        {"benchmarks": ["gsm8k", "math500", "aime24"], "overrides": ["seed=1"], "out": "o"},
    )
    assert calls[1] == ("check", good, {"overrides": ["seed=2"]})
    assert capsys.readouterr().out == "a table\na preview\n"


def test_score_and_compare_hand_on(calls, capsys):
    words = ["answers.jsonl", "data.limit=3", "--protocol", "minerva,dapo", "--scorer", "{name: x}", "data.split=b"]
    assert main(["score", *words]) == 0 and main(["eval", "compare", "a", "b"]) == 0
    given = {"benchmark": None, "scorers": ["{name: x}"], "protocols": ["minerva", "dapo"], "out": None}
    assert calls == [
        ("score", "answers.jsonl", given | {"overrides": ["data.limit=3", "data.split=b"]}),
        ("compare", "a", "b"),
    ]
    assert capsys.readouterr().out == "a verdict\nno difference\n"
    assert main(["eval", "compare", "a"]) == 2
    assert "found 1 folders to compare, expected two" in capsys.readouterr().err


def test_demo_trains_the_quickstart(calls, good, tmp_path, monkeypatch):
    folder = tmp_path / "shared" / "some"
    folder.mkdir(parents=True)
    (folder / "quickstart.yaml").write_text(GOOD)
    monkeypatch.setattr(recipes, "RECIPES", tmp_path / "shared")
    assert main(["demo", "seed=3"]) == 0
    assert calls[0][1]["recipe"] == folder / "quickstart.yaml" and calls[0][1]["overrides"] == ["seed=3"]


def test_problems_are_printed_one_a_line_without_a_traceback(calls, good, capsys):
    assert main(["train", good, "seed=1.5", "lr=1", "out=3"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and not calls
    lines = captured.err.splitlines()
    assert len(lines) == 3 and all(line.startswith("RecipeError: override: ") for line in lines)


def test_a_recipe_is_found_by_name_with_the_nearest_when_it_is_not(good, tmp_path, monkeypatch, capsys):
    for name in ("a/gsm8k_grpo", "a/twin", "b/twin"):
        path = tmp_path / "shared" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(GOOD)
    monkeypatch.setattr(recipes, "RECIPES", tmp_path / "shared")
    assert recipes.resolve("gsm8k_grpo").run.name == "gsm8k_grpo"
    assert recipes.resolve("b/twin").path == tmp_path / "shared/b/twin.yaml"
    assert main(["show", "gsm8k_gpro"]) == 2
    assert "no recipe of that name. Did you mean gsm8k_grpo? Recipes: gsm8k_grpo, twin" in capsys.readouterr().err
    assert main(["show", "twin"]) == 2
    assert "several recipes have that name: shared/a/twin.yaml, shared/b/twin.yaml." in capsys.readouterr().err


def test_show_prints_a_recipe_with_its_origins_and_passes(good, tmp_path, capsys):
    assert main(["show", good, "training.steps=7"]) == 0
    text = capsys.readouterr().out
    lines = {line.split("#")[0].strip(): line.split("# ")[-1] for line in text.splitlines() if "# " in line}
    assert lines["steps: 7"] == "override" and lines["source: addition"] == "good.yaml:2"
    assert lines["learning_rate: 1.0e-06"] == "default"
    assert text.endswith("# stage sft: passes over a batch, and the parts that need them\n"
                         "#   current: logprobs for likelihood\n")  # fmt: skip
    (tmp_path / "shown.yaml").write_text(text)
    assert recipes.resolve("shown.yaml").run == recipes.resolve(good, ["training.steps=7"]).run


def test_list_shows_kinds_and_rows(capsys):
    assert main(["list"]) == 0
    assert "algorithms    reinforce, reinforce_pp" in capsys.readouterr().out
    assert main(["list", "algorithms"]) == 0
    assert any(line.startswith("dpo ") and "arXiv:2305.18290" in line for line in capsys.readouterr().out.splitlines())
    assert main(["list", "algorithmz"]) == 2
    assert "CatalogError: no kind named 'algorithmz'. Did you mean algorithms?" in capsys.readouterr().err


def test_commands_without_overrides_refuse_them(capsys):
    with pytest.raises(SystemExit):
        main(["list", "algorithms", "seed=1"])
    assert "list takes no seed=1" in capsys.readouterr().err
