"""How much memory activations take, and whether there is enough of it to keep them for the backward pass."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from llmrl.config import Model

# of what is free beside weights, gradients and moments; an engine's keys and values want some, too
SHARE_FOR_ACTIVATIONS = 0.3
OPTIMIZER_BYTES = 12  # a trained parameter's gradient and two moments


def activation_bytes(config: Any, tokens: int, precision: str, recomputed: bool) -> float:
    """Bytes that the backward pass of so many tokens waits for in the decoder layers; an estimate, within a third.

    A layer of a Llama-like model keeps about 12 numbers of the hidden size and 4 of the inner size for a token, in bf16 a
    third of them still in fp32. Recomputed, it keeps its input, and one layer at a time the rest.
    """
    text = config.get_text_config()
    inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    width = 4.0 if precision == "fp32" else 3.2
    layer = width * (12 * text.hidden_size + 4 * inner)
    kept = 1.5 * 4 * text.hidden_size
    layers = text.num_hidden_layers
    return tokens * (layers * kept + layer if recomputed else layers * layer)


def recomputes(model: Any, config: Model, tokens: int | None) -> bool:
    """Whether layers compute their activations again in the backward pass; by 'auto' only when memory asks for it.

    tokens: the most that are forwarded at once; None: nothing is trained.
    """
    if config.gradient_checkpointing != "auto" or tokens is None:
        return config.gradient_checkpointing is True
    needed = activation_bytes(model.config, tokens, config.precision, recomputed=False)
    return needed > SHARE_FOR_ACTIVATIONS * free_bytes(model)


def free_bytes(model: Any) -> float:
    """Memory of the device that training will run on, less what weights, gradients and moments will take of it."""
    trained = OPTIMIZER_BYTES * sum(p.numel() for p in model.parameters() if p.requires_grad)
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0] - trained - sum(4 * p.numel() for p in model.parameters())
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return host_bytes() / processes - trained


def host_bytes() -> float:
    """What this machine, or the control group that the process runs in, can still give."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    limits = [int(lines["MemAvailable"].split()[0]) * 1024.0]
    for most, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        if Path(most).exists() and (limit := Path(most).read_text().strip()) != "max":
            limits.append(float(limit) - float(Path(used).read_text()))
    return min(limits)
