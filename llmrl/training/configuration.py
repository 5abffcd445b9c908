"""What accelerate was told to do, in a recipe's words; what llmrl does not do is refused."""

from __future__ import annotations

import os
from typing import Any

from accelerate.utils import (
    DeepSpeedPlugin,
    DistributedType,
    FullyShardedDataParallelPlugin,
    parse_flag_from_env,
)
from torch.distributed.fsdp import CPUOffloadPolicy

from llmrl.errors import TrainingError
from llmrl.policy.zero import package

PLAIN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
START = "Start with `llmrl train … --num-processes N`, or give accelerate a configuration for this machine."
WITHOUT_GPU = " Its MULTI_GPU with use_cpu: false starts them also where there is no GPU."


def demand_possible() -> None:
    """Refuse what accelerate was told and would refuse itself, in words that do not help. TrainingError."""
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and os.environ.get("FSDP_VERSION") != "2":
        raise TrainingError("accelerate's configuration asks for FSDP 1. Set fsdp_version: 2 in it.")
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        package()


def demand_all(size: int, kind: DistributedType) -> None:
    """Refuse a run of fewer processes than the launcher was asked for. TrainingError."""
    # of its configurations for CPUs accelerate starts one process, whatever their number, and no WORLD_SIZE tells
    alone = parse_flag_from_env("ACCELERATE_USE_CPU") and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if alone and size == 1:
        raise TrainingError(f"several processes were asked for, accelerate started one. {START}{WITHOUT_GPU}")
    if size != asked or (asked > 1 and kind == DistributedType.NO):
        raise TrainingError(f"{asked} processes were asked for, accelerate set up {size} ({kind.value}). {START}")


def told(accelerator: Any) -> tuple[DistributedType, Any]:
    """(what `accelerate launch` was told, its plug-in or None), which on a CPU is not what accelerate itself makes of it: it
    settles for plain data parallelism there and says nothing.
    """
    state = accelerator.state
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        return DistributedType.DEEPSPEED, getattr(state, "deepspeed_plugin", None) or DeepSpeedPlugin()
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return DistributedType.FSDP, getattr(state, "fsdp_plugin", None) or FullyShardedDataParallelPlugin()
    if parse_flag_from_env("ACCELERATE_USE_MEGATRON_LM"):
        return DistributedType.MEGATRON_LM, None
    return accelerator.distributed_type, None


def chosen(asked: str, kind: DistributedType, plugin: Any, size: int) -> str:
    """A value of `Run.parallel` other than 'auto': what the recipe asks for, or accelerate was told. TrainingError for what
    llmrl does not do.
    """
    refused, wanted = None, "ddp"
    if kind == DistributedType.FSDP:
        wanted = "fsdp"
        if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
            refused = (
                "weights that are kept on the CPU. Set fsdp_offload_params: false in it, or train adapters (model.lora)"
            )
    elif kind == DistributedType.DEEPSPEED:
        wanted = f"zero{plugin.zero_stage}"
        if plugin.zero_stage not in (1, 2, 3):
            refused = f"DeepSpeed's stage {plugin.zero_stage}, which spreads nothing. Set zero_stage: 1, 2 or 3 in it"
    elif kind not in PLAIN:
        refused = f"{kind.value}. Set distributed_type: FSDP with fsdp_version: 2, or DEEPSPEED, in it"
    if refused is None and wanted != "ddp" and asked not in ("auto", wanted):
        refused = f"{wanted}, and the recipe for parallel={asked}. Leave one of the two out"
    if refused is not None:
        raise TrainingError(f"accelerate's configuration asks for {refused}.")
    if size == 1:
        return "ddp"  # nobody to share with
    return wanted if asked == "auto" else asked


def zero_options(plugin: Any) -> dict[str, Any]:
    """DeepSpeed's zero_optimization section as accelerate's plug-in has it, less what is left to be found out. TrainingError
    for what llmrl does not do.
    """
    config, section = plugin.deepspeed_config, plugin.deepspeed_config["zero_optimization"]
    own = next((name for name in ("optimizer", "scheduler") if name in config), None)
    if own is not None:
        raise TrainingError(
            f"accelerate's configuration has an {own} for DeepSpeed; the recipe's training section says how steps are made. "
            f"Remove the section {own!r} from the DeepSpeed file."
        )
    away = {name: (section.get(name) or {}).get("device", "none") for name in ("offload_optimizer", "offload_param")}
    if away["offload_param"] != "none" or away["offload_optimizer"] not in ("none", "cpu"):
        raise TrainingError(
            f"accelerate's configuration asks DeepSpeed to keep weights or moments elsewhere ({away}); llmrl can keep moments "
            "on the CPU. Set offload_param_device: none, offload_optimizer_device: cpu or none in it, or train adapters "
            "(model.lora)."
        )
    kept = {key: value for key, value in section.items() if key not in away and value not in ("auto", None)}
    return kept | ({"offload_optimizer": {"device": "cpu"}} if away["offload_optimizer"] == "cpu" else {})
