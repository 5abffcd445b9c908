"""Weights that go to a server through a file: how they are written, and how each of its workers loads them."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from llmrl.errors import RolloutError

VERSION = "llmrl_version"  # in the file's header
MEMORY = "/dev/shm"
SPARE = 64 << 20  # bytes of the folder that stay free


def load_in_place(worker: Any, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Load every weight into a vLLM worker."""
    from vllm.platforms import current_platform

    with torch.no_grad():
        if current_platform.is_cpu():
            # vLLM packs each matrix for its CPU kernels and drops the original, so load_weights has nothing to
            # copy into. Keeping the originals instead (plain torch kernels) syncs in 3 ms, not 20, but
            # generates a quarter slower. Tied models need lm_head.weight in here, or their packed head stays old.
            worker.reload_weights(weights_iterator=weights)
        else:
            worker.get_model().load_weights(weights)


def write_weights(weights: Iterable[tuple[str, Tensor]], path: Path, version: str, dtype: torch.dtype) -> int:
    """Write the weights, floating-point ones as `dtype`, whole or not at all; their bytes.

    Raises RolloutError where the folder has not the room.
    """
    # a tensor of its own for each name: the file takes no two names for the same memory, as tied embeddings have
    kept = {n: w.to("cpu", dtype if w.is_floating_point() else w.dtype, copy=True).contiguous() for n, w in weights}
    size, free = sum(w.numel() * w.element_size() for w in kept.values()), shutil.disk_usage(path.parent).free
    if size + SPARE > free:
        raise RolloutError(
            f"the weights take {size >> 20} MiB and {path.parent} has {free >> 20} MiB free. Make room there, or set "
            "rollout.engine.weights_folder to a folder that trainer and servers both see."
        )
    draft = path.with_suffix(".tmp")
    save_file(kept, draft, metadata={VERSION: version})
    draft.rename(path)
    return size


class WeightsFromFile:
    """What a vLLM worker learns by --worker-extension-cls: to load a file, and to say which one it has.

    `load` of its answers is drawn anew at each load: two equal answers mean that nothing was loaded between them and
    that no server was started anew. Errors come back as {'error': ...}: raised, they would be an anonymous 500.
    """

    def llmrl_load(self, path: str, version: str) -> dict[str, Any]:
        self.llmrl_loaded = (None, None)  # half loaded is not loaded
        try:
            load_in_place(self, _read(path, version))
        except Exception as error:  # noqa: BLE001 - whatever it is, the trainer has to hear of it
            return {"error": f"{type(error).__name__}: {error}"}
        self.llmrl_loaded = (version, secrets.token_hex(8))
        return self.llmrl_state()

    def llmrl_state(self) -> dict[str, Any]:
        version, load = getattr(self, "llmrl_loaded", (None, None))
        return {"version": version, "load": load, "max_model_len": self.model_config.max_model_len, "pid": os.getpid()}


def _read(path: str, version: str) -> Iterator[tuple[str, Tensor]]:
    with safe_open(path, "pt") as file:
        found = (file.metadata() or {}).get(VERSION)
        if found != version:
            raise ValueError(f"{path} holds the weights {found!r}, expected {version!r}")
        for name in file.keys():  # noqa: SIM118 - not a mapping
            yield name, file.get_tensor(name)


def own_folder(parent: str | None) -> Path:
    """A new folder for the weights of this process alone, below `parent`; None: in memory where the system has that.

    Folders of processes of this machine that have ended are removed. Raises RolloutError where none can be made.
    """
    below = Path(parent or (MEMORY if os.path.isdir(MEMORY) else tempfile.gettempdir()))
    prefix = f"llmrl-weights-{socket.gethostname()}-"
    for old in below.glob(f"{prefix}*"):
        number = old.name.removeprefix(prefix).partition("-")[0]
        if number.isdigit() and not os.path.exists(f"/proc/{number}"):
            shutil.rmtree(old, ignore_errors=True)
    try:
        return Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=below))
    except OSError as error:
        raise RolloutError(
            f"rollout.engine.weights_folder: {error}. Name a folder that trainer and servers can both reach."
        ) from error
