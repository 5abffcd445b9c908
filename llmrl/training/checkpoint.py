"""Checkpoints: written beside their place and renamed into it, safetensors and JSON, nothing pickled.

checkpoint-<global step>/  weights.safetensors  optimizer.safetensors  state.json  MANIFEST.json
latest -> the newest of them
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmrl.durable import commit, discard, draft_of
from llmrl.errors import CheckpointError
from llmrl.faults import reach
from llmrl.policy.model import Policy
from llmrl.policy.sharding import full, shape_of

FORMAT = 2  # 1: the manifest has no versions, processes and recipe
MANIFEST, WEIGHTS, MOMENTS, STATE = "MANIFEST.json", "weights.safetensors", "optimizer.safetensors", "state.json"
MARGIN = 1.2  # room on the disk before a checkpoint is begun, over what its arrays take
RECORDED = ("llmrl", "torch", "transformers", "safetensors")


def save(
    folder: Path,
    global_step: int,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    keep: int,
    processes: int = 1,
    write: bool = True,
) -> Path:
    """Write `checkpoint-<global_step>` below folder; older ones beyond `keep` go only after it is in place.

    state: plain data (stage, step, memories of parts, the recipe's identity under 'recipe'). The manifest with every file's
    hash is written last. OSError where there is no room: nothing is left behind, and the older ones stay. write: False for
    a process that only gives its share of the arrays; where they are spread all have to call.
    """
    target = folder / f"checkpoint-{global_step}"
    if not (write or policy.sharding.spread):
        return target
    weights = {n: full(p).cpu().contiguous() for n, p in policy.trainable()}
    moments, numbers = optimizer_state(policy, optimizer)
    if not write:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    demand_room(folder, [*weights.values(), *moments.values()])
    draft = draft_of(target)
    try:
        draft.mkdir()
        for name, arrays in ((WEIGHTS, weights), (MOMENTS, moments)):
            save_file(arrays, draft / name)
            reach("file")
        (draft / STATE).write_text(json.dumps({**state, "optimizer": numbers}))
        reach("file")
        manifest = {
            "format": FORMAT,
            "global_step": global_step,
            "processes": processes,
            "recipe": hashlib.sha256(json.dumps(state.get("recipe"), sort_keys=True).encode()).hexdigest(),
            "versions": versions(),
            "files": {p.name: {"sha256": digest(p), "size": p.stat().st_size} for p in sorted(draft.iterdir())},
        }
        (draft / MANIFEST).write_text(json.dumps(manifest, indent=1))
        reach("manifest")
        reach("committing")
        commit(draft, target)
    except SafetensorError as error:  # its word for what the system said
        shutil.rmtree(draft, ignore_errors=True)
        raise OSError(errno.EIO, str(error)) from error
    except OSError:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    reach("committed")
    point_latest(folder, target)
    for old in sorted(all_checkpoints(folder), key=step_of)[:-keep]:
        reach("retaining")
        discard(old)
    return target


def optimizer_state(policy: Policy, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, float]]:
    """(arrays, numbers) of the optimizer, by '<parameter>/<key>'."""
    arrays: dict[str, Tensor] = {}
    numbers: dict[str, float] = {}
    for name, parameter in policy.trainable():
        for key, value in policy.sharding.moments(parameter, optimizer).items():
            if torch.is_tensor(value) and value.dim():
                arrays[f"{name}/{key}"] = value.cpu().contiguous()
            else:
                numbers[f"{name}/{key}"] = float(value)
    return arrays, numbers


def demand_room(folder: Path, arrays: list[Tensor]) -> None:
    """OSError unless the disk has room for the arrays, and some more."""
    disk, need = os.statvfs(folder), MARGIN * sum(a.numel() * a.element_size() for a in arrays)
    free = disk.f_bavail * disk.f_frsize
    if free < need:
        raise OSError(errno.ENOSPC, f"{free / 2**20:,.0f} MiB free, a checkpoint needs {need / 2**20:,.0f}")


def versions() -> dict[str, str]:
    """Of the interpreter and of what a checkpoint's contents depend on."""
    found = {"python": platform.python_version()}
    for name in RECORDED:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def point_latest(folder: Path, target: Path) -> None:
    """Let `latest` name the checkpoint; a convenience, so a file system without links does without."""
    draft = draft_of(folder / "latest")
    with contextlib.suppress(OSError):
        draft.symlink_to(target.name)
        os.replace(draft, folder / "latest")


def load(path: Path, policy: Policy, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's weights and optimizer state in place. CheckpointError when names or shapes differ."""
    try:
        weights, moments = load_file(path / WEIGHTS), load_file(path / MOMENTS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Resume from another checkpoint.") from error
    named, numbers = dict(policy.trainable()), read_state(path)["optimizer"]
    wrong = sorted(weights.keys() ^ named.keys())
    wrong += [n for n, p in named.items() if n in weights and weights[n].shape != shape_of(p)]
    wrong += [k for k, v in moments.items() if (p := named.get(k.rpartition("/")[0])) is None or shape_of(p) != v.shape]
    wrong += [k for k in numbers if k.rpartition("/")[0] not in named]
    if wrong:
        raise CheckpointError(
            f"{path} does not belong to this model: {', '.join(wrong[:3])} differ in name or shape. Start a new run with "
            "another run.name, or resume=never."
        )
    policy.sharding.put((parameter, weights[name]) for name, parameter in named.items())
    for key, value in (moments | {k: torch.tensor(v) for k, v in numbers.items()}).items():
        name, _, kind = key.rpartition("/")
        policy.sharding.put_moment(named[name], optimizer, kind, value)


def read_state(path: Path) -> dict[str, Any]:
    """The plain data of a checkpoint. CheckpointError where it is not what `save` writes."""
    try:
        state = json.loads((path / STATE).read_text())
        missing = {"stage", "step", "global_step", "recipe", "optimizer"} - state.keys()
        missing |= {key for key in {"stage", "step", "global_step"} & state.keys() if type(state[key]) is not int}
        missing |= {
            f"optimizer.{key}" for key, number in state.get("optimizer", {}).items() if type(number) is not float
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path / STATE} cannot be read: {error}. Resume from another checkpoint.") from error
    if missing:
        raise CheckpointError(f"{path / STATE} lacks {', '.join(sorted(missing))}. Resume from another checkpoint.")
    return state


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
            discard(path)


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None. Every file is compared with the manifest's hash."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        if manifest["format"] not in (1, FORMAT):
            return f"it has format {manifest['format']!r:.40}, this llmrl reads 1 to {FORMAT}"
        files = manifest["files"]
        lacking = sorted({WEIGHTS, MOMENTS, STATE} - files.keys())
        if lacking:
            return f"its manifest lacks {', '.join(lacking)}"
        for name, facts in files.items():
            file = path / name
            if Path(name).name != name or file.is_symlink():  # such as /dev/zero, which never ends
                return f"its manifest names {name!r:.60}, which is no file of its own"
            if not file.is_file():
                return f"{name:.60} is missing"
            if file.stat().st_size != facts["size"] or digest(file) != facts["sha256"]:
                return f"{name} does not have the contents that were written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"its manifest cannot be read ({error!s:.200})"
    return None


def processes_of(path: Path) -> int | None:
    """How many processes wrote a valid checkpoint, where it says so."""
    return json.loads((path / MANIFEST).read_text()).get("processes")


def all_checkpoints(folder: Path) -> list[Path]:
    return [p for p in folder.glob("checkpoint-*") if p.is_dir() and p.name.removeprefix("checkpoint-").isdigit()]


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("checkpoint-"))


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
