"""Memory that does not suffice on one of two processes: none waits for ever, and the weights are those of enough memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import rows, write_recipe
from safetensors.torch import load_file

from llmrl.training import checkpoint
from llmrl.training.losses import Job

pytestmark = pytest.mark.processes
SECTIONS = {
    "algorithm": {"name": "ppo", "epochs": 2, "minibatches": 2},
    "scorers": ["judges:varied"],
    "rollout": {"prompts_per_step": 5},  # three here, two there
    "training": {"steps": 3, "save_every": 1},
    "rank_timeout": 60.0,  # one that waits for ever fails then
}
FITTING = 3  # rows


def cramped(job, chosen, *arguments, **settings):
    """Job.loss of a process that has memory for few rows: the forward pass is made, and what is left does not suffice."""
    out = roomy(job, chosen, *arguments, **settings)
    if len(chosen) > FITTING:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    return out


roomy = Job.loss
if __name__ == "__main__":
    from llmrl import train

    for recipe in sys.argv[1:]:
        short = os.environ["RANK"] == "1" and "cramped" in recipe
        Job.loss = cramped if short else roomy
        train(recipe)


@pytest.mark.parametrize("budget", [8192, 80], ids=["one-pass", "several-passes"])
def test_memory_that_one_process_lacks_changes_no_weights(tmp_path, budget):
    training = SECTIONS["training"] | {"tokens_per_micro_batch": budget}
    recipes = [write_recipe(tmp_path, name, **SECTIONS | {"training": training}) for name in ("roomy", "cramped")]
    command = [sys.executable, "-m", "llmrl.training.launch", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        ["timeout", "300", *command, "-m", "test_short_memory", *map(str, recipes)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    whole, tight = (tmp_path / "runs" / name for name in ("roomy", "cramped"))
    assert rows(tight)[0]["update/split"] >= 1 and "update/split" not in rows(tight)[-1] | rows(whole)[0]
    weights = [load_file(run / "checkpoint-3" / "weights.safetensors") for run in (whole, tight)]
    for name, expected in weights[0].items():
        torch.testing.assert_close(weights[1][name], expected, atol=1e-6, rtol=1e-5)
    kept = checkpoint.read_state(tight / "checkpoint-3")["updater"]
    assert kept["budget"] < kept["asked"]  # the first process has them smaller too, and it is the one that says so
