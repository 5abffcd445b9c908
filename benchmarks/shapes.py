"""The steps that vs_trl.py measures: a model, its prompts and how many answers of what length."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A model and a step. model: options of `tiny`; qwen2: of that size, but with Qwen2's layers and a head of its own.

    mean_length: what the end token's probability is set for; longest_prompt: in tokens. tuned: the fastest GRPOConfig
    options of those that tune_trl.py tries, weights left in fp32.
    """

    model: dict[str, Any]
    prompts_per_step: int
    group_size: int
    longest_prompt: int
    max_tokens: int
    mean_length: float
    tuned: dict[str, Any]
    qwen2: bool = True

    @property
    def completions(self) -> int:
        return self.prompts_per_step * self.group_size


def model_of(words: int) -> dict[str, Any]:
    """8.1 million parameters with 8,192 words, 20.7 million with 32,768."""
    bytes_and_tags = 263
    return {"hidden": 256, "layers": 4, "feed_forward": 1024, "vocabulary": "bytes",
            "added": [f"<w{i}>" for i in range(words - bytes_and_tags)]}  # fmt: skip


TUNED = {"bf16": True, "gradient_checkpointing": False, "per_device_train_batch_size": 32}
SHAPES = {
    "A": Shape(model_of(8192), prompts_per_step=4, group_size=8, longest_prompt=64, max_tokens=128, mean_length=41.0,
               tuned=TUNED),
    "B": Shape(model_of(32768), prompts_per_step=4, group_size=8, longest_prompt=64, max_tokens=64, mean_length=24.0,
               tuned=TUNED),
    "C": Shape(model_of(8192), prompts_per_step=4, group_size=8, longest_prompt=256, max_tokens=64, mean_length=26.0,
               tuned=TUNED),
    "demo": Shape({}, prompts_per_step=16, group_size=8, longest_prompt=24, max_tokens=56, mean_length=18.4,
                  tuned=TUNED | {"bf16": False, "per_device_train_batch_size": 128}, qwen2=False),
}  # fmt: skip


def make_model(shape: Shape, folder: Path) -> None:
    """Write a random model that ends an answer with the same probability everywhere, as a geometric law.

    Input embeddings share one large coordinate, which the end token's output row reads. That row is fitted until the
    truncated mean length comes out.
    """
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

    from llmrl.policy.tiny import tiny

    tiny(str(folder), **shape.model)
    model = AutoModelForCausalLM.from_pretrained(folder)
    if shape.qwen2:
        names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                 "num_key_value_heads", "max_position_embeddings", "pad_token_id", "eos_token_id")  # fmt: skip
        same = {name: getattr(model.config, name) for name in names}
        generation = model.generation_config
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(Qwen2Config(**same, bos_token_id=None, tie_word_embeddings=False, dtype="float32"))
        model.generation_config = generation
    weight, end = model.get_output_embeddings().weight.data, model.config.eos_token_id
    model.get_input_embeddings().weight.data[:, 0] = 0.5
    ids = torch.randint(10, 100, (32, shape.longest_prompt), generator=torch.Generator().manual_seed(0))

    def length(strength: float) -> float:
        weight[end, 0] = strength
        with torch.no_grad():
            p = model(ids).logits.softmax(-1)[..., end].mean().item()
        return (1 - (1 - p) ** shape.max_tokens) / p

    low, high = 0.0, 10.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if length(middle) > shape.mean_length else (low, middle)
    model.save_pretrained(folder)


def make_prompts(shape: Shape, steps: int, file: Path, tokenizer: Any) -> None:
    """Write one chat prompt a line, of between half of and all of `shape.longest_prompt` tokens."""
    rng = random.Random(0)
    frame = len(
        tokenizer.apply_chat_template([{"role": "user", "content": ""}], add_generation_prompt=True)["input_ids"]
    )
    with file.open("w") as out:
        for _ in range(steps * shape.prompts_per_step):
            length = rng.randint(shape.longest_prompt // 2, shape.longest_prompt)
            content = "".join(rng.choice("0123456789+-") for _ in range(length - frame))
            out.write(json.dumps({"prompt": [{"role": "user", "content": content}]}) + "\n")
