"""Small whole runs: a recipe as a dict, trained in this process, and what it left behind."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from judges import varied as varied

from llmrl import train
from llmrl.api import Result
from llmrl.loop import Loop
from llmrl.recipe_tree import Tree, overlay
from llmrl.training import session

TINY = {"make": {"name": "tiny", "hidden": 32, "layers": 1, "heads": 2, "kv_heads": 1, "feed_forward": 64}}
BASE = {
    "model": TINY,
    "data": {"source": {"name": "addition", "size": 64}},
    "rollout": {"prompts_per_step": 4, "group_size": 4, "max_tokens": 8},
    "training": {"steps": 3, "learning_rate": 1e-3},
    "tracking": {"panel": "off"},
}
TIMED = ("time/", "tokens_per_second/")


def laid_over(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid on `under`, mappings joined, as a recipe lies on its base."""
    return overlay(Tree(copy.deepcopy(under)), Tree(copy.deepcopy(over))).values


def write_recipe(folder: Path, name: str = "run", **sections: Any) -> Path:
    """BASE with the sections laid over it, as <name>.yaml; the run goes to folder/runs/<name>."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(laid_over(BASE | {"out": str(folder / "runs")}, sections), sort_keys=False))
    return path


def trained(folder: Path, name: str = "run", functions: Sequence[Callable] = (), **sections: Any) -> Result:
    """The Result of training such a recipe here, on one thread."""
    torch.set_num_threads(1)
    return train(write_recipe(folder, name, **sections), scorers=functions)


def rows(folder: Path, kind: str = "") -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without times, only those that have the key `kind` where one is given."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    every = [{k: v for k, v in json.loads(line).items() if not k.startswith(TIMED)} for line in lines]
    return [row for row in every if not kind or kind in row]


def rollouts(folder: Path, step: int) -> list[dict[str, Any]]:
    lines = (folder / "rollouts" / f"step_{step:06d}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def weights_of(folder: Path) -> str:
    """Hash of what the run exported."""
    return digest(next((folder / "final").glob("*model.safetensors")))


def messages_of(monkeypatch) -> list[str]:
    """What runs say from now on, line by line."""
    said: list[str] = []
    panel = SimpleNamespace(message=said.append, stage=lambda *_: None, step=lambda *_: None, close=lambda: None)
    monkeypatch.setattr(session, "make_panel", lambda *_: panel)
    return said


class Killed(BaseException):
    """Nothing in a run may catch this."""


def killed_after(patch, done: int) -> None:
    """From here on a run dies at the start of the step that follows `done` others."""
    step, made = Loop.step, []

    def mortal(loop, number):
        if len(made) == done:
            raise Killed
        made.append(number)
        return step(loop, number)

    patch.setattr(Loop, "step", mortal)


def interrupted(folder, done: int, name: str = "run", **sections):
    """Kill such a run after `done` steps."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        killed_after(patch, done)
        trained(folder, name, **sections)
