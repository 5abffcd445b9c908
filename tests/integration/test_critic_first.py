"""A critic that is fitted while the policy stays as it is, then both."""

from __future__ import annotations

from helpers import rows, trained
from safetensors.torch import load_file

CRITIC = {
    "name": "critic",
    "algorithm": {"objective": {"name": "value", "value_clip": None}},
    "training": {"steps": 3, "train_only": ["value_head"], "learning_rate": 0.1},
}


def files(folder, stage: str):
    at = folder / "stages" / stage
    return load_file(at / "model.safetensors"), load_file(at / "value_head.safetensors")


def test_a_critic_is_fitted_ahead_and_the_policy_waits(tmp_path):
    stages = [{"name": "start", "training": {"steps": 1, "learning_rate": 1e-12}}, CRITIC, {"name": "policy"}]
    result = trained(
        tmp_path,
        algorithm={"name": "ppo", "kl_coef": 0.0},
        scorers=[{"name": "length", "min_tokens": 1, "max_tokens": 4}],
        stages=stages,
    )
    (first, _), (waiting, fitted), (moved, _) = (files(result.folder, s) for s in ("start", "critic", "policy"))
    assert all((first[name] - waiting[name]).abs().max() < 1e-9 for name in first)
    assert any((waiting[name] != moved[name]).any() for name in waiting)
    assert fitted["weight"].abs().max() > 0.1
    errors = [row["critic/error"] for row in rows(result.folder, "critic/error") if row["stage"] == "critic"]
    assert errors[-1] < errors[0]
