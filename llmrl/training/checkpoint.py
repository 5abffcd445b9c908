"""Checkpoints: written beside their place and renamed into it, safetensors and JSON, nothing pickled."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from llmrl.errors import CheckpointError
from llmrl.policy.model import Policy

MANIFEST = "MANIFEST.json"


def save(
    folder: Path, global_step: int, policy: Policy, optimizer: torch.optim.Optimizer, state: dict[str, Any], keep: int
) -> Path:
    """Write `checkpoint-<global_step>` below folder; older ones beyond `keep` go only after it is in place.

    state: plain data (stage, step, memories of parts). The manifest with every file's hash is written last.
    """
    target = folder / f"checkpoint-{global_step}"
    draft = folder / f"{target.name}.tmp-{uuid.uuid4().hex[:8]}"
    draft.mkdir(parents=True)
    named = policy.trainable()
    save_file({n: p.detach().cpu().contiguous() for n, p in named}, draft / "weights.safetensors")
    moments, steps = {}, {}
    for name, parameter in named:
        for key, value in optimizer.state.get(parameter, {}).items():
            if torch.is_tensor(value) and value.dim():
                moments[f"{name}/{key}"] = value.detach().cpu().contiguous()
            else:
                steps[f"{name}/{key}"] = float(value)
    save_file(moments, draft / "optimizer.safetensors")
    (draft / "state.json").write_text(json.dumps({**state, "optimizer": steps}))
    files = {p.name: {"sha256": _hash(p), "size": p.stat().st_size} for p in sorted(draft.iterdir())}
    for path in draft.iterdir():
        _fsync(path)
    (draft / MANIFEST).write_text(json.dumps({"format": 1, "global_step": global_step, "files": files}, indent=1))
    _fsync(draft / MANIFEST)
    _fsync(draft)
    if target.exists():
        shutil.rmtree(target)
    os.rename(draft, target)
    _fsync(folder)
    for old in sorted(all_checkpoints(folder), key=step_of)[:-keep]:
        shutil.rmtree(old)
    return target


def load(path: Path, policy: Policy, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's weights and optimizer state in place. CheckpointError when names or shapes differ."""
    weights = load_file(path / "weights.safetensors")
    named = dict(policy.trainable())
    if weights.keys() != named.keys() or any(weights[n].shape != p.shape for n, p in named.items()):
        differ = sorted(set(weights) ^ set(named))[:3] or ["the shapes"]
        raise CheckpointError(
            f"{path} does not belong to this model: {', '.join(differ)} differ. Start a new run with "
            "another run.name, or resume=never."
        )
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(weights[name])
    moments = load_file(path / "optimizer.safetensors")
    steps = read_state(path)["optimizer"]
    for name, parameter in named.items():
        state = {
            k.rpartition("/")[2]: v.to(parameter.device) for k, v in moments.items() if k.rpartition("/")[0] == name
        }
        state |= {k.rpartition("/")[2]: torch.tensor(v) for k, v in steps.items() if k.rpartition("/")[0] == name}
        if state:
            optimizer.state[parameter] = state


def read_state(path: Path) -> dict[str, Any]:
    return json.loads((path / "state.json").read_text())


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """(the newest valid checkpoint or None, one line for each that was passed over)."""
    refused = []
    for path in sorted(all_checkpoints(folder), key=step_of, reverse=True):
        problem = damage(path)
        if problem is None:
            return path, refused
        refused.append(f"{path.name}: {problem}")
    return None, refused


def forget_after(folder: Path, global_step: int) -> None:
    """Remove the checkpoints of steps that a run is about to make again."""
    for path in all_checkpoints(folder):
        if step_of(path) > global_step:
            shutil.rmtree(path)


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None. Every file is compared with the manifest's hash."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        for name, facts in manifest["files"].items():
            file = path / name
            if not file.exists():
                return f"{name} is missing"
            if file.stat().st_size != facts["size"] or _hash(file) != facts["sha256"]:
                return f"{name} does not have the contents that were written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest cannot be read ({error})"
    return None


def all_checkpoints(folder: Path) -> list[Path]:
    return [p for p in folder.glob("checkpoint-*") if p.is_dir() and p.name.removeprefix("checkpoint-").isdigit()]


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("checkpoint-"))


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
