"""Checkpoints of every format that was ever written are read today, and a format does not change under its number.

`python tests/integration/test_golden_checkpoint.py` writes tests/fixtures/checkpoints/format-<number>, for a new number.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from helpers import rows, trained, write_recipe
from safetensors import safe_open
from safetensors.torch import load_file

from llmrl.errors import CheckpointError
from llmrl.recipe import resolve
from llmrl.training import checkpoint
from llmrl.training.places import demand_same, identity

GOLDEN = Path(__file__).parents[1] / "fixtures" / "checkpoints"
FORMATS = sorted(path.name for path in GOLDEN.glob("format-*"))
MODEL = {"make": {"name": "tiny", "hidden": 4, "layers": 1, "heads": 1, "kv_heads": 1, "feed_forward": 4}}
RUN = {
    "model": MODEL,
    "algorithm": {"name": "reinforce", "regularizers": ["adaptive_kl"]},  # two memories
    "scorers": ["judges:varied"],
    "training": {"steps": 2, "save_every": 2},
}


def shape(value):
    """Plain data without its values; the recipe's keys are the schema's business."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items() if key != "recipe"}
    return type(value).__name__


def described(folder: Path) -> dict:
    """What a checkpoint consists of: files, keys, names and shapes of arrays."""
    found = {"files": sorted(path.name for path in folder.iterdir())}
    for path in folder.glob("*.json"):
        found[path.name] = shape(json.loads(path.read_text()))
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found[path.name] = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    return found


@pytest.mark.parametrize("name", FORMATS)
def test_a_run_goes_on_from_a_checkpoint_of_that_format(tmp_path, name):
    weights = load_file(GOLDEN / name / "checkpoint-2" / checkpoint.WEIGHTS)
    for steps in (2, 4):
        folder = tmp_path / "runs" / f"to-{steps}"
        shutil.copytree(GOLDEN / name / "checkpoint-2", folder / "checkpoint-2")
        longer = RUN | {"training": {"steps": steps, "save_every": 2}}
        done = trained(tmp_path, f"to-{steps}", resume=str(folder / "checkpoint-2"), **longer)
        exported = load_file(done.folder / "final" / "model.safetensors")
        same = [array.equal(weights[f"model.{key}"]) for key, array in exported.items()]
        assert all(same) if steps == 2 else not any(same)
    assert [row["step"] for row in rows(done.folder, "loss/total")] == [3, 4]


def test_a_key_that_a_recipe_has_since_then_had_its_default(tmp_path):
    recipe = resolve(write_recipe(tmp_path, **RUN))
    told = identity(recipe, [])
    del told["stages"][0]["rollout"]["sync"]
    demand_same(tmp_path, tmp_path, {"recipe": told, "stage": 0}, recipe, [])
    changed = resolve(write_recipe(tmp_path, **RUN | {"rollout": {"sync": "never"}}))
    for state in (told, told | {"stages": "damaged"}):
        with pytest.raises(CheckpointError, match="stages"):
            demand_same(tmp_path, tmp_path, {"recipe": state, "stage": 0}, changed, [])


def test_the_present_format_is_what_its_golden_checkpoint_has(tmp_path):
    assert f"format-{checkpoint.FORMAT}" in FORMATS, "a new format: write its golden checkpoint, and keep the old ones"
    run = trained(tmp_path, "golden", **RUN)
    golden = GOLDEN / f"format-{checkpoint.FORMAT}" / "checkpoint-2"
    assert described(run.folder / "checkpoint-2") == described(golden), "raise checkpoint.FORMAT"


if __name__ == "__main__":
    target = GOLDEN / f"format-{checkpoint.FORMAT}"
    if target.exists():
        sys.exit(f"{target} is there. Raise checkpoint.FORMAT first.")
    with tempfile.TemporaryDirectory() as place:
        made = trained(Path(place), "golden", **RUN)
        shutil.copytree(made.folder / "checkpoint-2", target / "checkpoint-2")
