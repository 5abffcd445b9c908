"""Every recipe of recipes/algorithms makes three steps a stage through the real loop, on a tiny model and sums.

Kept of each recipe: the algorithm with all its options, its stages, replay where it replays. The model, the data and the
sizes are small, the rewards vary within every group, so that something is learnt from.
"""

from __future__ import annotations

import pytest
import yaml
from helpers import BASE, TINY, rows, weights_of
from judges import by_prompt, coin, graded

from llmrl import catalog, train
from llmrl.recipe import RECIPES

SMALL = {**TINY["make"]}
BLOCKS = ("solution", "confidence")


SCORERS = {"blockwise": [coin, graded], "dph_rl": [by_prompt], "pvpo": [coin]}
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
        "model": {**{k: v for k, v in kept.get("model", {}).items() if k in ("lora", "verdict_tokens")}, "make": SMALL},
        "data": DATA.get(name, {"source": {"name": "addition", "size": 32}}),
        "algorithm": kept.get("algorithm", {}),
        "rollout": {
            "prompts_per_step": 8,
            "group_size": 4,
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
    if name == "fcp":
        pytest.skip("its rewards are words: tests/unit/test_recipes.py trains it")
    result = train(small(name, tmp_path), scorers=scorers)
    made = [row for row in rows(result.folder) if "update/steps" in row]
    assert [row["step"] for row in made] == [1, 2, 3] * (2 if name == "ppo_max" else 1)  # its critic comes first
    assert all(row["gradient/norm"] >= 0 for row in made)
    assert weights_of(result.folder) is not None
