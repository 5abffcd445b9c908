"""Every recipe of recipes/algorithms makes three steps a stage through the real loop, on a tiny model and sums.

Kept of each recipe: the algorithm with all its options, its stages, replay where it replays. The model, the data and the
sizes are small, the rewards vary within every group, so that something is learnt from.
"""

from __future__ import annotations

import math

import pytest
import yaml
from helpers import BASE, TINY, rows, weights_of
from judges import by_prompt, coin, graded, told

from llmrl import catalog, train
from llmrl.recipe import RECIPES

SMALL = {**TINY["make"]}
BLOCKS = ("solution", "confidence")


SCORERS = {"fcp": [told], "passk": [coin], "blockwise": [coin, graded], "dph_rl": [by_prompt], "pvpo": [coin]}
WITH_ANSWERS = {"source": {"name": "addition_demonstrations", "size": 32}}
DATA = {
    "dpo": {"source": {"name": "addition_pairs", "size": 32}},
    "bradley_terry": {"source": {"name": "addition_pairs", "size": 32}},
    "sft": WITH_ANSWERS,
    "ahpo": WITH_ANSWERS,
    "process_reward": {"source": {"name": "addition_steps", "size": 32}},
}


def small(name: str, folder) -> str:
    """The recipe of that name with everything but its method made small; the path of the file."""
    kept = yaml.safe_load((RECIPES / "algorithms" / f"{name}.yaml").read_text())
    replays = kept.get("rollout", {}).get("engine") == "replay"
    out = {
        **BASE,
        "model": {
            **{k: v for k, v in kept.get("model", {}).items() if k in ("lora", "verdict_tokens", "added_tokens")},
            "make": SMALL,
        },
        "data": DATA.get(name, {"source": {"name": "addition", "size": 32}}),
        "algorithm": kept.get("algorithm", {}),
        "rollout": {
            "prompts_per_step": 8,
            "group_size": 8,  # more than a set of poly_ppo and passk holds
            "max_tokens": 8,
            "engine": "replay" if replays else "transformers",
        },
        "training": {"steps": 3, "learning_rate": 1e-3},
        "out": str(folder),
    }
    if name == "process_reward":
        out["model"] = {"make": SMALL | {"vocabulary": "bytes"}}
        out["rollout"]["max_tokens"] = 64
    if "extra_data" in kept:
        out["extra_data"] = WITH_ANSWERS
    if "blocks" in kept.get("data", {}):
        out["data"] = out["data"] | {"blocks": list(BLOCKS)}
        out["model"] = {"make": SMALL | {"vocabulary": "bytes"}}
        written = [f"<solution>{n}</solution><confidence>0.{n}</confidence>" for n in range(1, 9)]
        out["rollout"] |= {"engine": {"name": "scripted", "answers": written}, "max_tokens": 64}
        out["training"]["max_logprob_gap"] = 1e3  # an untrained model does not write segments: a script does
    if "stages" in kept:
        out["stages"] = [
            {
                "name": stage["name"],
                "algorithm": stage["algorithm"],
                "rollout": {k: v for k, v in stage.get("rollout", {}).items() if k == "sync"},
                "training": {k: v for k, v in stage["training"].items() if k in ("train_only", "schedule")},
            }
            for stage in kept["stages"]
        ]
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(out, sort_keys=False))
    return str(path)


@pytest.mark.parametrize("name", catalog.table("algorithms"))
def test_a_recipe_trains_three_steps(name, tmp_path):
    replayed = name in ("dpo", "sft", "bradley_terry", "process_reward")
    scorers = [] if replayed else SCORERS.get(name, [graded])
    result = train(small(name, tmp_path), scorers=scorers)
    made = [row for row in rows(result.folder) if "update/steps" in row]
    stages = len(made) // 3
    assert stages == (2 if name in ("ppo_max", "fcp") else 1) and [row["step"] for row in made] == [1, 2, 3] * stages
    moved = [
        row["trust/share"] if name == "trpo" else row["gradient/norm"] for row in made
    ]  # TRPO has steps of its own
    assert all(math.isfinite(size) for size in moved) and max(moved) > 0
    assert weights_of(result.folder)
