"""The published GSM8K through its own recipe: every prompt, GRPO on a small model, sampled by either engine."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from helpers import messages_of, rollouts, rows

from llmrl import run as building
from llmrl import train
from llmrl.recipe import RECIPES

FOLDER = Path(__file__).parents[2].parent / "shared" / "data"
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not FOLDER.is_dir(), reason="no ../shared/data beside the checkout: published data not there"),
]
GAP = 1e-3  # mean and largest difference in fp32; healthy engines stay below 1e-5
SMALL = {  # one token a byte, so every limit of the recipe in tokens is too low for it
    "model": {
        "path": None,
        "make": {"name": "tiny", "vocabulary": "bytes", "max_positions": 2048},
        "precision": "fp32",
    },
    "data.source": str(FOLDER / "gsm8k_train.jsonl"),
    "data.subset": None,
    "data.max_prompt_tokens": 1536,
    "evaluation.test.data.source": str(FOLDER / "gsm8k_test.jsonl"),
    "evaluation.test.data.max_prompt_tokens": 1536,
    "evaluation.test.limit": 4,
    "evaluation.test.max_tokens": 8,
    "scorers": ["math_answer", "format_tags", "judges:varied"],  # random weights earn nothing from the first two
    "rollout": {"prompts_per_step": 3, "group_size": 4, "max_tokens": 24},
    "training": {"steps": 3, "learning_rate": 1e-3},
    "tracking": {"panel": "off"},
}
VLLM = {"rollout.engine": {"name": "vllm", "kv_cache_megabytes": 32}}


def steps_of(folder: Path, **overrides) -> tuple[Path, list[dict]]:
    torch.set_num_threads(1)
    result = train(RECIPES / "gsm8k_grpo.yaml", SMALL | {"out": str(folder)} | overrides)
    return result.folder, rows(result.folder, "gradient/norm")


def check(steps: list[dict], number: int) -> None:
    assert len(steps) == number
    for row in steps:
        assert row["update/rows"] > 0 and row["gradient/norm"] > 0  # so the next step samples from new weights
        assert row["rollout/logprob_gap_mean"] <= row["rollout/logprob_gap_max"] < GAP
        assert row["rollout/count"] == 12 and row["rollout/dropped"] == 0 and row["scorer/errors"] == 0


def test_all_of_gsm8k_and_three_steps_of_grpo(tmp_path, monkeypatch):
    said, sets, load = messages_of(monkeypatch), [], building.load
    monkeypatch.setattr(building, "load", lambda *a, **o: sets.append(load(*a, **o)) or sets[-1])
    folder, steps = steps_of(tmp_path, **{"rollout.engine": "transformers"})
    assert any("7,473 rows: 7,473 prompts kept, 0 refused as too long, 0 unusable" in line for line in said)
    data = [json.loads(line) for line in (FOLDER / "gsm8k_train.jsonl").open(encoding="utf-8")]
    for prompt, row in zip(sets[0].prompts, data, strict=True):
        system, user = prompt.messages
        assert (system["role"], user) == ("system", {"role": "user", "content": row["question"]})
        assert "\\boxed{N}" in system["content"] and prompt.reference == row["answer"]
        # special tokens are one each: <|im_start|>role\n…<|im_end|>\n twice, then <|im_start|>assistant\n
        glue = (1 + len("system\n") + 2) + (1 + len("user\n") + 2) + (1 + len("assistant\n"))
        text = re.sub(r"</?(think|answer)>", "#", system["content"] + row["question"])  # and so are the four tags
        assert len(prompt.ids) == glue + len(text.encode()) <= 1536
    check(steps, 3)
    for record in rollouts(folder, 3):
        assert record["scores"]["math_answer"]["value"] in (0.0, 1.0) and record["scores"]["math_answer"]["evidence"]
    assert rows(folder, "eval/test/accuracy")[-1]["eval/test/num"] == 4


@pytest.mark.vllm
def test_vllm_samples_from_what_is_trained(tmp_path):
    pytest.importorskip("vllm")
    folder, steps = steps_of(tmp_path, **VLLM)
    check(steps, 3)
    assert [{r["version"] for r in rollouts(folder, step)} for step in (1, 2, 3)] == [{0}, {1}, {2}]


@pytest.mark.vllm
def test_vllm_samples_from_the_adapters_that_are_trained(tmp_path):
    pytest.importorskip("vllm")
    _, steps = steps_of(tmp_path, **VLLM, **{"model.lora": {"rank": 4}, "training.steps": 2, "data.limit": 64})
    check(steps, 2)
