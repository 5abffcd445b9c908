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
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

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
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chats = [[{"role": "user", "content": content}] for content in contents(shape, tokenizer, 64)]
    encoded = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, padding_side="left", return_tensors="pt", return_dict=True
    )
    torch.manual_seed(0)
    written = model.generate(
        **encoded, do_sample=True, top_k=0, max_new_tokens=shape.max_tokens, suppress_tokens=[end], eos_token_id=-1
    )
    mask = torch.ones_like(written)
    mask[:, : encoded["attention_mask"].shape[1]] = encoded["attention_mask"]

    def end_logits(strength: float) -> tuple[torch.Tensor, torch.Tensor]:
        weight[end, 0] = strength
        with torch.no_grad():
            logits = model(written, attention_mask=mask, logits_to_keep=shape.max_tokens + 1).logits[:, :-1]
        own = logits[..., end].clone()
        logits[..., end] = -torch.inf
        return own, logits.logsumexp(-1)

    (without, others), (with_one, _) = end_logits(0.0), end_logits(1.0)  # linear in the strength

    def length(strength: float) -> float:
        goes_on = torch.sigmoid(others - without - strength * (with_one - without))
        return 1 + goes_on.cumprod(1)[:, :-1].sum(1).mean().item()

    low, high = 0.0, 10.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if length(middle) > shape.mean_length else (low, middle)
    weight[end, 0] = middle
    model.save_pretrained(folder)


def contents(shape: Shape, tokenizer: Any, count: int) -> list[str]:
    """What users say: chat prompts of between half of and all of `shape.longest_prompt` tokens."""
    rng = random.Random(0)
    empty = [{"role": "user", "content": ""}]
    frame = len(tokenizer.apply_chat_template(empty, add_generation_prompt=True)["input_ids"])
    lengths = [rng.randint(shape.longest_prompt // 2, shape.longest_prompt) - frame for _ in range(count)]
    return ["".join(rng.choice("0123456789+-") for _ in range(length)) for length in lengths]


def make_prompts(shape: Shape, steps: int, file: Path, tokenizer: Any) -> None:
    """Write one chat prompt a line."""
    with file.open("w") as out:
        for content in contents(shape, tokenizer, steps * shape.prompts_per_step):
            out.write(json.dumps({"prompt": [{"role": "user", "content": content}]}) + "\n")
