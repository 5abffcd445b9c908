"""Two processes give what one gives, and none of them waits for ever when the work is uneven."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import PartialState
from helpers import messages_of, rollouts, rows, trained, write_recipe

from llmrl.types import Score

pytestmark = pytest.mark.processes
TOLERANCE = 1e-5  # gradients are summed in another order; measured differences stay below 1e-6


def placed(prompt, rollout) -> Score:
    """A value out of the tokens, with the process of the run that it was judged for as evidence."""
    evidence = {"size": PartialState(cpu=True).num_processes, "rank": int(os.environ.get("RANK", 0))}
    return Score(float(sum(rollout.ids) % 7), evidence=evidence)


def only_here(prompt, rollout) -> Score:
    """Judges on the first process alone."""
    if os.environ.get("RANK", "0") != "0":
        raise ValueError("not here")
    return placed(prompt, rollout)


def two_processes(recipe: Path, *overrides: str) -> str:
    """What `llmrl train <recipe> --num-processes 2` printed. Fails when it does not end well, or in ten minutes."""
    command = [sys.executable, "-m", "llmrl.cli", "train", str(recipe), "--num-processes", "2", *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        ["timeout", "600", *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def same_rows(found: list[dict], expected: list[dict]) -> None:
    for row, alone in zip(found, expected, strict=True):
        assert row.pop("stage") == alone.pop("stage")
        assert row == pytest.approx(alone, rel=TOLERANCE, abs=TOLERANCE)


STAGES = [  # 5 prompts a step: uneven on two processes, and PPO's second mini-batch holds rows of either
    {"name": "grpo", "algorithm": {"name": "grpo", "kl_coef": 0.04}},
    {"name": "ppo", "algorithm": {"name": "ppo"}},
    {
        "name": "dpo",
        "algorithm": {"name": "dpo"},
        "data": {"source": {"name": "addition_pairs", "size": 64}},
        "rollout": {"engine": "replay"},
        "scorers": [],
        "evaluation": {"held-out": {"data": {"source": {"name": "addition_pairs", "size": 12, "split": "test"}}}},
    },
]
METHODS = {
    "scorers": ["test_processes:placed"],
    "rollout": {"prompts_per_step": 5},
    "training": {"tokens_per_micro_batch": 96},  # several micro-batches, and not as many on each process
    "stages": STAGES,
}


def test_two_processes_give_what_one_gives(tmp_path):
    two_processes(write_recipe(tmp_path, "two", **METHODS))
    one = trained(tmp_path, "one", **METHODS)
    two = tmp_path / "runs" / "two"
    for step in range(1, 7):
        judged = [record["scores"]["placed"]["evidence"] for record in rollouts(two, step)]
        assert {e["size"] for e in judged} == {1}  # a scorer does not take itself for a process of the run
        assert [e["rank"] for e in judged] == [0] * 12 + [1] * 8  # 3 prompts here, 2 there
        assert [r["ids"] for r in rollouts(two, step)] == [r["ids"] for r in rollouts(one.folder, step)]
    expected = rows(one.folder)
    assert len(expected) == 11  # 3 × 3 steps, and the evaluation before and after
    same_rows(rows(two), expected)


UNEVEN = {
    "model": {"lora": {"rank": 4}},
    "algorithm": {"name": "ppo", "epochs": 1, "minibatches": 2},
    "scorers": ["test_processes:only_here"],
    "scoring": {"max_error_share": 1.0},
    "stages": [
        {"name": "both", "scorers": ["test_processes:placed"], "rollout": {"prompts_per_step": 5}},
        {"name": "fewer", "rollout": {"prompts_per_step": 1}},  # none for the second process
        {"name": "dropped"},  # every row of the second process
    ],
}


def test_adapters_and_a_process_without_rows(tmp_path):
    two_processes(write_recipe(tmp_path, "two", **UNEVEN))
    one = trained(tmp_path, "one", **UNEVEN)
    two = rows(tmp_path / "runs" / "two")
    same_rows(two[:6], rows(one.folder)[:6])
    assert [row["rollout/dropped"] for row in two] == [0.0] * 6 + [8.0] * 3
    assert all(row["gradient/norm"] > 0 for row in two)


MECHANISMS = {
    "scorers": [
        "judges:by_prompt"
    ],  # a third of the prompts teach nothing, and the two processes have not equally many
    "rollout": {"prompts_per_step": 5},
    "training": {"tokens_per_micro_batch": 96, "steps": 2},
    "stages": [
        {"name": "refilled", "algorithm": {"name": "dapo"}},
        {"name": "selected", "algorithm": {"name": "d3s", "initial_share": 0.5}, "scorers": ["judges:varied"]},
        {"name": "paired", "algorithm": {"name": "p3o", "epochs": 2}, "scorers": ["judges:varied"]},
        {
            "name": "beside",
            "algorithm": {"name": "ahpo", "minibatches": 2},
            "data": {"source": {"name": "addition_demonstrations", "size": 64}},
        },
        {
            "name": "of-its-own",
            "algorithm": {"name": "ppo_max", "ptx_coef": 0.5, "minibatches": 2},
            "extra_data": {"source": {"name": "addition_demonstrations", "size": 64}},
        },
        {
            "name": "prepared",
            "algorithm": {"name": "kl_cov", "fraction": 0.2, "minibatches": 2},
            "scorers": ["judges:varied"],
        },
        {"name": "ahead", "algorithm": {"name": "dph_rl", "num_samples": 4, "eta": 0.5, "minibatches": 2}},
        {"name": "bounded", "algorithm": {"name": "fixpo", "bound": 0.01, "epochs": 1, "minibatches": 2}},
        {"name": "greedy", "algorithm": {"name": "remax"}, "scorers": ["judges:unsure"]},
    ],
}


def test_what_methods_ask_of_the_loop_is_the_same_on_two_processes(tmp_path):
    two_processes(write_recipe(tmp_path, "two", **MECHANISMS))
    one = trained(tmp_path, "one", **MECHANISMS)
    two, expected = tmp_path / "runs" / "two", rows(one.folder)
    assert len(expected) == 18
    same_rows(rows(two), expected)
    for step in range(1, 19):
        written = [sorted((r["prompt_id"], r["ids"], r["kept"]) for r in rollouts(f, step)) for f in (two, one.folder)]
        assert written[0] == written[1]
    records = [(folder / "reference-ahead-0.jsonl").read_text().splitlines() for folder in (two, one.folder)]
    assert len(records[0]) == len(records[1]) == 64


def test_one_process_is_told_that_it_has_nobody_to_share_with(tmp_path, monkeypatch):
    said = messages_of(monkeypatch)
    trained(
        tmp_path, parallel="zero2", algorithm={"name": "grpo"}, scorers=["test_processes:placed"], training={"steps": 1}
    )
    assert any("careful: parallel=zero2 shares among several processes, and this is one" in line for line in said)
