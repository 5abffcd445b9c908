"""DeepSpeed's ZeRO over two processes gives what one process gives, from the same checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import laid_over, rollouts, rows, trained, write_recipe
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from test_processes import TOLERANCE, same_rows
from transformers import AutoModelForCausalLM

from llmrl.training import checkpoint

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.processes
SMALL = {
    "scorers": ["judges:varied"],
    "rollout": {"prompts_per_step": 3},  # two here, one there, in several micro-batches and not as many
    "training": {"tokens_per_micro_batch": 48, "steps": 2, "weight_decay": 0.1},
}
PLAIN = SMALL | {"algorithm": {"name": "grpo", "kl_coef": 0.04}}  # with a reference model
METHODS = SMALL | {
    "stages": [
        {"name": "critic", "algorithm": {"name": "ppo", "minibatches": 2}},
        {
            "name": "fewer",
            "algorithm": {"name": "grpo"},
            "rollout": {"prompts_per_step": 1},
        },  # none for the second process
        {"name": "divergence", "algorithm": {"name": "grpo", "regularizers": ["kl_full"]}},
        {
            "name": "mixed",
            "algorithm": {"name": "ppo_max", "ptx_coef": 0.5},
            "extra_data": {"source": {"name": "addition_demonstrations", "size": 64}},
        },
    ],
}
ADAPTED = laid_over(PLAIN, {"model": {"lora": {"rank": 4}}})
WHOLE = laid_over(
    PLAIN,
    {
        "training": {"steps": 4, "save_every": 2, "keep_checkpoints": 4},
        "evaluation": {"held": {"data": {"source": "addition"}, "scorers": ["judges:varied"], "limit": 5, "every": 2}},
    },
)
HALF = laid_over(WHOLE, {"training": {"steps": 2}})
SPOILT = laid_over(PLAIN, {"training": {"steps": 3}})
CASES = {"methods": METHODS, "adapted": ADAPTED, "half": HALF}


def ran(*command: str) -> None:
    """Run it. Fails when that does not end well, or not in ten minutes."""
    paths = os.pathsep.join([str(Path(__file__).parent), os.getcwd()])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(
        ["timeout", "600", *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:]


def on_two(*recipes: Path) -> None:
    """Train the recipes on two processes."""
    command = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    ran(*command, "-m", "shares_of_ranks", *map(str, recipes))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """The folder of the runs: <name>-<stage> on two processes, <name>-0 on one, and halves that another stage, or one
    process, went on with."""
    folder = tmp_path_factory.mktemp("zero")

    def recipe(name: str, stage: int, case: dict, **more) -> Path:
        return write_recipe(folder, f"{name}-{stage}", parallel=f"zero{stage}", rank_timeout=100.0, **case, **more)

    for name, case in {"plain": PLAIN, "methods": METHODS, "adapted": ADAPTED, "whole": WHOLE, "half": HALF}.items():
        trained(folder, f"{name}-0", **case)
    done = folder / "runs"

    def copied(half: int, name: str) -> str:
        """A checkpoint of that half run, below a folder for one that goes on with it."""
        shutil.copytree(done / f"half-{half}", done / name)
        return str(done / name / "checkpoint-2")

    on_two(
        recipe("plain", 1, PLAIN),
        *(recipe(name, stage, case) for stage in (2, 3) for name, case in CASES.items()),
        recipe("spoilt", 2, SPOILT),
        recipe("spoilt", 3, SPOILT),
        *(recipe("from-one", stage, WHOLE, resume=copied(0, f"from-one-{stage}")) for stage in (2, 3)),
        write_recipe(folder, "half-2-goes-on", parallel="zero3", resume=str(done / "half-2" / "checkpoint-2"), **WHOLE),
    )
    for stage in (2, 3):
        trained(folder, f"to-one-{stage}", resume=copied(stage, f"to-one-{stage}"), **WHOLE)
    return done


@pytest.mark.parametrize(
    ("name", "stage"), [("plain", 1), *((name, stage) for stage in (2, 3) for name in ("methods", "adapted"))]
)
def test_the_same_rollouts_and_numbers_at_every_step(runs, name, stage):
    one, two = runs / f"{name}-0", runs / f"{name}-{stage}"
    same_rows(rows(two), rows(one))
    steps = len(rows(one, "loss/total"))
    assert steps >= 2
    for step in range(1, steps + 1):
        assert [r["ids"] for r in rollouts(two, step)] == [r["ids"] for r in rollouts(one, step)]


@pytest.mark.parametrize("began", ["from-one-2", "from-one-3", "half-2", "to-one-2", "to-one-3"])
def test_a_checkpoint_goes_on_under_another_way_of_sharing(runs, began):
    same_rows(rows(runs / began)[-3:], rows(runs / "whole-0")[-3:])


@pytest.mark.parametrize("stage", [2, 3])
def test_checkpoints_and_exports_are_those_of_one_process(runs, stage):
    for file in (checkpoint.WEIGHTS, checkpoint.MOMENTS):
        one, two = (load_file(runs / f"half-{n}" / "checkpoint-2" / file) for n in (0, stage))
        assert one.keys() == two.keys()
        for name, array in one.items():
            torch.testing.assert_close(two[name], array, rtol=1e-3, atol=TOLERANCE)
    states = [checkpoint.read_state(runs / f"half-{n}" / "checkpoint-2")["optimizer"] for n in (0, stage)]
    assert states[0] == states[1]
    ends = {2: ("whole-0", "half-2"), 3: ("half-0", "half-3")}[stage]  # the first of them has gone on under stage 3
    one, two = (AutoModelForCausalLM.from_pretrained(runs / end / "final").state_dict() for end in ends)
    torch.testing.assert_close(two, one, rtol=1e-3, atol=TOLERANCE)


@pytest.mark.parametrize(("name", "stage"), [("plain", 1), ("adapted", 2), ("half", 3)])
def test_deepspeed_has_spread_it(runs, name, stage):
    shares = [json.loads((runs / f"{name}-{stage}" / f"shares-{rank}.json").read_text()) for rank in (0, 1)]
    arrays = load_file(runs / f"{name}-{stage}" / "checkpoint-2" / checkpoint.MOMENTS).values()
    trained_numbers = sum(array.numel() for array in arrays)
    for share in shares:
        assert (share["engine"], share["stage"]) == ("DeepSpeedEngine", stage)
        assert share["moments"] == pytest.approx(trained_numbers / 2, rel=0.05)  # padding is the rest
        assert (share["weights"] == 0) == (stage == 3)  # between passes none is here


@pytest.mark.parametrize("stage", [2, 3])
def test_engines_get_adapters_merged_in(runs, stage):
    sent = load_file(runs / f"adapted-{stage}" / "sent.safetensors")
    merged = AutoPeftModelForCausalLM.from_pretrained(runs / "adapted-0" / "final").merge_and_unload().state_dict()
    assert sent.keys() == merged.keys()
    torch.testing.assert_close(sent, dict(merged), rtol=1e-3, atol=TOLERANCE)


CONFIGURATION = """
compute_environment: LOCAL_MACHINE
distributed_type: DEEPSPEED
deepspeed_config: {zero_stage: 2, offload_optimizer_device: cpu, offload_param_device: none, zero3_init_flag: false}
num_machines: 1
num_processes: 2
machine_rank: 0
main_process_port: 0
mixed_precision: 'no'
use_cpu: true
"""


def test_accelerate_launch_with_a_deepspeed_configuration(runs, tmp_path):
    configuration = tmp_path / "zero.yaml"
    configuration.write_text(CONFIGURATION)
    recipe = write_recipe(tmp_path, "launched-2", rank_timeout=100.0, **PLAIN)
    command = [str(Path(sys.executable).parent / "accelerate"), "launch", "--config_file", str(configuration)]
    ran(*command, "-m", "shares_of_ranks", str(recipe))
    same_rows(rows(tmp_path / "runs" / "launched-2"), rows(runs / "plain-0"))
    share = json.loads((tmp_path / "runs" / "launched-2" / "shares-1.json").read_text())
    assert (share["engine"], share["stage"], share["offloaded"]) == ("DeepSpeedEngine", 2, True)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_gradient_that_is_not_finite_on_one_process_moves_nothing(runs, stage):
    found = rows(runs / f"spoilt-{stage}", "update/steps")
    assert [row["update/steps"] for row in found] == [1, 0, 1]
    assert found[1]["update/skipped"] == 1
    assert [record["ids"] for record in rollouts(runs / f"spoilt-{stage}", 2)] == [
        record["ids"] for record in rollouts(runs / "plain-0", 2)
    ]
    assert found[2]["loss/total"] == found[2]["loss/total"]
