"""A killed run that goes on gives what it would have given, to the bit; and what resuming refuses."""

from __future__ import annotations

import json

import pytest
from helpers import TIMED, interrupted, messages_of, rollouts, rows, trained, varied, weights_of

from llmrl.errors import CheckpointError, ModelError

STEPS = {"training": {"steps": 5, "save_every": 2}}
TWO_STAGES = {
    "stages": [
        {
            "name": "warm-up",
            "algorithm": {"name": "sft"},
            "data": {"source": {"name": "addition_demonstrations", "size": 64}},
            "rollout": {"engine": "replay"},
            "training": {"steps": 2},
        },
        {"name": "rl", "algorithm": {"name": "ppo"}, "scorers": ["judges:varied"], "training": {"steps": 3}},
    ],
}
FCP = {
    "scorers": [{"name": "scripted_feedback", "tags": False}],
    # any feedback enters the pool, so that there is a memory to resume with
    "algorithm": {"name": "fcp", "condition": {"min_score": 0.0}},
}
RUNS = {
    "grpo": STEPS | {"algorithm": {"name": "grpo", "kl_coef": 0.04}, "scorers": ["judges:varied"]},
    "ppo": STEPS | {"algorithm": {"name": "ppo", "epochs": 2, "minibatches": 2}, "scorers": ["judges:varied"]},
    "lora": STEPS | {"algorithm": {"name": "grpo"}, "scorers": ["judges:varied"], "model": {"lora": {"rank": 4}}},
    "fcp": STEPS | FCP,
    "stages": TWO_STAGES | {"training": {"save_every": 2}},
}


def remembering(algorithm: dict, scorer: str = "judges:varied", **sections) -> dict:
    """Five steps of a method whose parts have a memory, or whose prompts are not dealt one batch a step."""
    return STEPS | {"algorithm": algorithm, "scorers": [scorer], **sections}


ADAPTIVE = [{"name": "adaptive_kl", "target": 1e-4, "kl_coef": 0.5}, {"name": "adaptive_entropy", "target": 10.0}]
REMEMBERING = {
    "hapo": remembering({"name": "hapo", "minibatches": 2, "tau": 0.5}, "judges:by_prompt"),
    "reinforce": remembering({"name": "reinforce"}),
    "ppo_max": remembering(
        {"name": "ppo_max", "ptx_coef": 0.1, "minibatches": 2},
        extra_data={"source": {"name": "addition_demonstrations", "size": 48}},
    ),
    "fixpo": remembering({"name": "fixpo", "bound": 0.01, "epochs": 1, "minibatches": 2}),
    "dapo": remembering({"name": "dapo"}, "judges:by_prompt"),
    "pvpo": remembering({"name": "pvpo", "num_samples": 4, "refresh_every": 3}, "judges:by_prompt"),
    "dph_rl": remembering({"name": "dph_rl", "num_samples": 4}, "judges:by_prompt"),
    "adaptive": remembering({"name": "grpo", "epochs": 2, "regularizers": ADAPTIVE}),
    "alp": remembering({"name": "alp", "sigma": 0.01}),
}
RUNS |= REMEMBERING


def untimed(metrics: dict) -> dict:
    return {key: value for key, value in metrics.items() if not key.startswith(TIMED)}


@pytest.mark.parametrize(
    ("kind", "done"),
    # checkpoints at steps 2 and 4: killed right after one, and one step later; 'stages' changes them at 2
    [("grpo", 2), ("grpo", 3), ("ppo", 3), ("lora", 3), ("fcp", 3), ("stages", 2), ("stages", 3), ("stages", 4)]
    + [(kind, 3) for kind in REMEMBERING],
)
def test_a_killed_run_goes_on_to_the_bit(tmp_path, kind, done):
    whole = trained(tmp_path, "whole", **RUNS[kind])
    interrupted(tmp_path, done, "killed", **RUNS[kind])
    resumed = trained(tmp_path, "killed", **RUNS[kind])
    assert resumed.folder == tmp_path / "runs" / "killed"
    assert rows(resumed.folder) == rows(whole.folder) and len(rows(whole.folder)) == 5
    assert weights_of(resumed.folder) == weights_of(whole.folder)
    for step in range(1, 6):
        assert rollouts(resumed.folder, step) == rollouts(whole.folder, step)
    assert untimed(resumed.metrics) == untimed(whole.metrics)


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("hapo", ["sampling.HapoTemperature"]),
        ("reinforce", ["advantage.Reinforce"]),
        ("ppo_max", ["combine.PpoMaxNormalisation"]),
        ("fixpo", ["regularizers.FixpoPenalty"]),
        ("adaptive", ["regularizers.AdaptiveKl", "regularizers.AdaptiveEntropy"]),
    ],
)
def test_checkpoints_hold_memories_that_go_on(tmp_path, kind, keys):
    folder = trained(tmp_path, **RUNS[kind]).folder
    then, now = (json.loads((folder / f"checkpoint-{n}" / "state.json").read_text())["states"] for n in (4, 5))
    assert all(then[key] != now[key] for key in keys)


def test_a_damaged_checkpoint_is_passed_over_with_a_message(tmp_path, monkeypatch):
    whole = trained(tmp_path, "whole", **RUNS["grpo"])
    interrupted(tmp_path, 4, "killed", **RUNS["grpo"])
    weights = tmp_path / "runs" / "killed" / "checkpoint-4" / "weights.safetensors"
    contents = bytearray(weights.read_bytes())
    contents[-1] ^= 1
    weights.write_bytes(contents)
    said = messages_of(monkeypatch)
    resumed = trained(tmp_path, "killed", **RUNS["grpo"])
    text = "\n".join(said)
    assert "checkpoint-4: weights.safetensors does not have the contents that were written" in text
    assert "after step 2" in text
    assert rows(resumed.folder) == rows(whole.folder) and weights_of(resumed.folder) == weights_of(whole.folder)


def test_a_named_checkpoint_is_resumed_from_and_a_damaged_one_refused(tmp_path):
    whole = trained(tmp_path, "whole", **RUNS["grpo"])
    interrupted(tmp_path, 4, "killed", **RUNS["grpo"])
    folder = tmp_path / "runs" / "killed"
    (folder / "checkpoint-4" / "state.json").unlink()
    with pytest.raises(CheckpointError, match="checkpoint-4: state.json is missing"):
        trained(tmp_path, "killed", resume=str(folder / "checkpoint-4"), **RUNS["grpo"])
    resumed = trained(tmp_path, "killed", resume=str(folder / "checkpoint-2"), **RUNS["grpo"])
    assert resumed.folder == folder and rows(folder) == rows(whole.folder)


def test_a_finished_run_is_left_alone_and_the_next_is_numbered(tmp_path):
    first = trained(tmp_path, functions=[varied], algorithm={"name": "grpo"})
    kept = {path: path.read_bytes() for path in sorted(first.folder.rglob("*")) if path.is_file()}
    second = trained(tmp_path, functions=[varied], algorithm={"name": "grpo"})
    assert second.folder == first.folder.with_name("run-2") and rows(second.folder) == rows(first.folder)
    assert {path: path.read_bytes() for path in sorted(first.folder.rglob("*")) if path.is_file()} == kept


def test_never_resuming_starts_a_numbered_run(tmp_path):
    interrupted(tmp_path, 3, **RUNS["grpo"])
    fresh = trained(tmp_path, resume="never", **RUNS["grpo"])
    assert fresh.folder.name == "run-2" and rows(fresh.folder)[0]["global_step"] == 1


def test_another_recipe_is_refused_with_the_keys_that_differ(tmp_path):
    interrupted(tmp_path, 3, **RUNS["grpo"])
    changed = RUNS["grpo"] | {"seed": 7, "rollout": {"group_size": 2}}
    with pytest.raises(
        CheckpointError, match=r"seed, stages\[0\]\.rollout\.group_size differ.*recipe\.yaml in that folder"
    ):
        trained(tmp_path, **changed)
    longer = RUNS["grpo"] | {"training": {"steps": 6, "save_every": 2}}  # how long to train may change
    assert len(rows(trained(tmp_path, **longer).folder)) == 6


@pytest.mark.parametrize("path", ["nobody/no-such-model", "damaged"])
def test_a_model_that_cannot_be_had_leaves_no_folder(tmp_path, monkeypatch, path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "damaged").mkdir()
    sections = {"algorithm": {"name": "grpo"}, "scorers": ["judges:varied"]}
    with pytest.raises(ModelError, match="model.path"):
        trained(tmp_path, "gone", model={"path": path, "make": None}, **sections)
    assert not (tmp_path / "runs" / "gone").exists()
    run = trained(tmp_path, "gone", training={"steps": 1}, **sections)
    assert run.folder == tmp_path / "runs" / "gone"
