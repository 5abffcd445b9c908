"""What accelerate's configuration asks for is done, or refused before anything loads."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import yaml
from accelerate.utils import DeepSpeedPlugin, DistributedType
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy

from llmrl.algorithm import Algorithm
from llmrl.config import Training
from llmrl.demands import refuse_spread
from llmrl.errors import RecipeError, TrainingError
from llmrl.recipe import resolve
from llmrl.training.configuration import chosen, demand_all, demand_possible, told, zero_options
from llmrl.training.preview import preview
from llmrl.updates.fixpo import Fixpo
from llmrl.updates.trpo import Trpo

NO, CPU, GPU = DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU
FSDP, DEEPSPEED = DistributedType.FSDP, DistributedType.DEEPSPEED


def fsdp(offload: bool = False) -> SimpleNamespace:
    """What accelerate makes of such a configuration."""
    return SimpleNamespace(cpu_offload=CPUOffloadPolicy() if offload else OffloadPolicy())


def zero(stage: int) -> SimpleNamespace:
    return SimpleNamespace(zero_stage=stage)


def launched(monkeypatch, **environment: str) -> None:
    """As if by `accelerate launch`, which tells by the environment."""
    for name in ("WORLD_SIZE", "MASTER_ADDR", "ACCELERATE_USE_CPU", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("asked", "kind", "plugin", "expected"),
    [
        ("auto", CPU, None, "ddp"),
        ("fsdp", CPU, None, "fsdp"),
        ("zero2", GPU, None, "zero2"),
        ("auto", FSDP, fsdp(), "fsdp"),
        ("fsdp", FSDP, fsdp(), "fsdp"),
        ("auto", DEEPSPEED, zero(1), "zero1"),
        ("zero3", DEEPSPEED, zero(3), "zero3"),
    ],
)
def test_the_recipe_or_accelerate_says_what_is_shared(asked, kind, plugin, expected):
    assert chosen(asked, kind, plugin, 2) == expected


@pytest.mark.parametrize(("kind", "plugin"), [(NO, None), (FSDP, fsdp()), (DEEPSPEED, zero(2))])
def test_one_process_has_nobody_to_share_with(kind, plugin):
    assert chosen("auto", kind, plugin, 1) == "ddp"


@pytest.mark.parametrize(
    ("asked", "kind", "plugin", "said"),
    [
        ("auto", FSDP, fsdp(offload=True), "fsdp_offload_params: false"),
        ("ddp", FSDP, fsdp(), "fsdp, and the recipe for parallel=ddp"),
        ("auto", DEEPSPEED, zero(0), "stage 0, which spreads nothing. Set zero_stage"),
        ("fsdp", DEEPSPEED, zero(3), "zero3, and the recipe for parallel=fsdp"),
        ("zero2", DEEPSPEED, zero(3), "zero3, and the recipe for parallel=zero2"),
        ("fsdp", DistributedType.MEGATRON_LM, None, "MEGATRON_LM. Set distributed_type: FSDP"),
    ],
)
def test_what_llmrl_does_not_do_is_refused(asked, kind, plugin, said):
    with pytest.raises(TrainingError, match=said):
        chosen(asked, kind, plugin, 2)


def test_on_a_cpu_what_was_told_counts_and_not_what_accelerate_settled_for(monkeypatch):
    settled = SimpleNamespace(distributed_type=CPU, state=SimpleNamespace(deepspeed_plugin=None))
    launched(monkeypatch)
    assert told(settled) == (CPU, None)
    launched(monkeypatch, ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")
    kind, plugin = told(settled)
    assert (kind, plugin.fsdp_version) == (FSDP, 2)
    launched(monkeypatch, ACCELERATE_USE_DEEPSPEED="true", ACCELERATE_DEEPSPEED_ZERO_STAGE="3")
    kind, plugin = told(settled)
    assert chosen("auto", kind, plugin, 2) == "zero3"


def test_fewer_processes_than_asked_for_are_refused(monkeypatch):
    launched(monkeypatch)
    demand_all(1, NO)
    launched(monkeypatch, WORLD_SIZE="2")
    demand_all(2, CPU)
    with pytest.raises(TrainingError, match="2 processes were asked for, accelerate set up 1 .NO.. Start with"):
        demand_all(1, NO)
    launched(monkeypatch, MASTER_ADDR="127.0.0.1", ACCELERATE_USE_CPU="True")  # its MULTI_CPU
    with pytest.raises(TrainingError, match="several processes were asked for, accelerate started one. Start with"):
        demand_all(1, NO)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"offload_optimizer": {"device": "none"}, "offload_param": {"device": "none"}}, {}),
        ({"offload_optimizer": {"device": "cpu"}}, {"offload_optimizer": {"device": "cpu"}}),
        ({"reduce_bucket_size": 500, "allgather_bucket_size": "auto"}, {"reduce_bucket_size": 500}),
    ],
)
def test_deepspeeds_own_section_counts(monkeypatch, section, expected):
    launched(monkeypatch)
    plugin = DeepSpeedPlugin(hf_ds_config={"zero_optimization": {"stage": 2} | section})
    found = zero_options(plugin)
    found.pop("stage3_gather_16bit_weights_on_model_save", None)
    assert found == {"stage": 2} | expected


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"optimizer": {"type": "Adam"}}, "an optimizer for DeepSpeed.*Remove the section 'optimizer'"),
        ({"scheduler": {"type": "WarmupLR"}}, "Remove the section 'scheduler'"),
        ({"zero_optimization": {"offload_param": {"device": "cpu"}}}, "offload_param_device: none"),
        ({"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}, "offload_optimizer_device: cpu or none"),
    ],
)
def test_what_deepspeed_is_told_and_llmrl_does_not_do_is_refused(config, said):
    with pytest.raises(TrainingError, match=said):
        zero_options(SimpleNamespace(deepspeed_config={"zero_optimization": {"stage": 3}} | config))


def test_without_deepspeed_the_next_move_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    launched(monkeypatch, ACCELERATE_USE_DEEPSPEED="true")
    with pytest.raises(TrainingError, match=r"pip install 'llmrl\[deepspeed\]', or set parallel=fsdp"):
        demand_possible()


def test_the_first_fsdp_is_refused(monkeypatch):
    launched(monkeypatch, ACCELERATE_USE_FSDP="true", FSDP_VERSION="1")
    with pytest.raises(TrainingError, match="FSDP 1. Set fsdp_version: 2"):
        demand_possible()


@pytest.mark.parametrize(
    ("parallel", "rule", "training", "said"),
    [
        ("fsdp", Trpo(), {}, "parallel=fsdp spreads them"),
        ("zero1", Trpo(), {}, "parallel=zero1 spreads them"),
        ("zero2", Fixpo(), {}, "Set parallel=fsdp or ddp"),
        ("zero3", None, {"train_only": ["value_head"]}, "training.train_only.*Set parallel=fsdp or ddp"),
    ],
)
def test_what_needs_parameters_of_its_own_is_refused(parallel, rule, training, said):
    config = SimpleNamespace(name="run", training=Training(**training))
    algorithm = Algorithm(objective=lambda logprobs: None, update=rule)
    refuse_spread(config, algorithm, "ddp")
    with pytest.raises(RecipeError, match=said):
        refuse_spread(config, algorithm, parallel)


def test_a_recipe_that_asks_for_it_is_refused_before_anything_loads(tmp_path):
    recipe = {"model": {"make": "tiny"}, "data": {"source": "addition"}, "scorers": ["math_answer"],
              "algorithm": {"name": "trpo"}}  # fmt: skip
    for parallel in ("fsdp", "ddp"):
        (tmp_path / f"{parallel}.yaml").write_text(yaml.safe_dump(recipe | {"parallel": parallel}))
    with pytest.raises(RecipeError, match="parallel=fsdp spreads them"):
        preview(resolve(tmp_path / "fsdp.yaml"))
    assert "nothing is wrong with it" in preview(resolve(tmp_path / "ddp.yaml"))
