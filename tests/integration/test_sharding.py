"""Weights, gradients and moments spread over two processes (FSDP2) give what one process gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import rollouts, rows, trained, write_recipe
from safetensors.torch import load_file
from test_processes import STAGES, TOLERANCE, UNEVEN, same_rows

from llmrl.training import checkpoint

pytestmark = pytest.mark.processes
METHODS = {
    "scorers": ["judges:varied"],
    "rollout": {"prompts_per_step": 3},  # two here, one there, in several micro-batches and not as many
    "training": {"tokens_per_micro_batch": 48, "steps": 2},
    "stages": STAGES,
}
GROUPED = {
    "model": {"attention": "eager"},  # no packed rows: every row is forwarded whole, in rectangles
    "scorers": ["judges:varied"],
    "rollout": {"prompts_per_step": 3},
    "training": {"tokens_per_micro_batch": 48, "steps": 1},
    "stages": [
        {"name": "ahead", "algorithm": {"name": "dph_rl", "num_samples": 2, "eta": 0.5, "minibatches": 2}},
        {"name": "bounded", "algorithm": {"name": "fixpo", "bound": 0.001, "epochs": 1, "minibatches": 2}},
        {"name": "kept", "algorithm": {"name": "grpo"}, "rollout": {"sync": "never"}},
    ],
}
MEASURED = {
    "algorithm": {"name": "ppo", "epochs": 1},
    "scorers": ["judges:varied"],
    "rollout": {"prompts_per_step": 3},
    "training": {"steps": 4, "save_every": 2, "keep_checkpoints": 4},
    "evaluation": {"held-out": {"data": {"source": "addition"}, "scorers": ["judges:varied"], "limit": 5, "every": 2}},
}
HALF = MEASURED | {"training": MEASURED["training"] | {"steps": 2}}


def on_two(*recipes: Path) -> None:
    """Train the recipes on two processes. Fails when that does not end well, or not in ten minutes."""
    command = [sys.executable, "-m", "llmrl.training.launch", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        ["timeout", "600", *command, "-m", "trained_by_ranks", *map(str, recipes)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """The folder of the runs: <name>-2 on two processes, <name>-1 on one, and half runs that one went on with on the other."""
    folder = tmp_path_factory.mktemp("sharding")
    cases = {"methods": METHODS, "uneven": UNEVEN, "grouped": GROUPED, "measured": MEASURED, "half": HALF}
    spread = {"parallel": "fsdp", "rank_timeout": 100.0}  # one that waits for ever fails then
    recipes = [write_recipe(folder, f"{name}-2", **spread, **case) for name, case in cases.items()]
    for name, case in cases.items():
        trained(folder, f"{name}-1", **case)
    from_one = str(folder / "runs" / "half-1" / "checkpoint-2")
    on_two(*recipes, write_recipe(folder, "half-1", resume=from_one, **spread, **MEASURED))
    trained(folder, "half-2", resume=str(folder / "runs" / "half-2" / "checkpoint-2"), **MEASURED)
    return folder / "runs"


@pytest.mark.parametrize("name", ["methods", "grouped", "measured"])
def test_the_same_rollouts_and_numbers_at_every_step(runs, name):
    one, two = runs / f"{name}-1", runs / f"{name}-2"
    same_rows(rows(two), rows(one))
    steps = len(rows(one, "loss/total"))
    assert steps >= 2
    for step in range(1, steps + 1):
        assert [r["ids"] for r in rollouts(two, step)] == [r["ids"] for r in rollouts(one, step)]


def test_adapters_and_processes_without_rows(runs):
    two = rows(runs / "uneven-2")
    same_rows(two[:6], rows(runs / "uneven-1")[:6])
    assert all(row["gradient/norm"] > 0 for row in two)


@pytest.mark.parametrize("began", ["half-1", "half-2"])
def test_a_checkpoint_of_one_goes_on_with_two_and_the_other_way_round(runs, began):
    same_rows(rows(runs / began, "loss/total"), rows(runs / "measured-1", "loss/total"))


def test_checkpoints_and_exports_are_those_of_one_process(runs):
    for file in (checkpoint.WEIGHTS, checkpoint.MOMENTS):
        one, two = (load_file(runs / f"measured-{n}" / "checkpoint-4" / file) for n in (1, 2))
        assert one.keys() == two.keys()
        for name, array in one.items():
            torch.testing.assert_close(two[name], array, rtol=1e-3, atol=TOLERANCE)
    one, two = (load_file(runs / f"measured-{n}" / "final" / "model.safetensors") for n in (1, 2))
    assert one.keys() == two.keys()
    assert {name for name in one if one[name].shape != two[name].shape} == set()
