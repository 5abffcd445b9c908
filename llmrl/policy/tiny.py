"""A small Qwen3 with random weights and its own tokenizer, for tests and for runs without downloads."""

from __future__ import annotations

import re
from typing import Any, Literal

PAD, START, END, UNKNOWN = "<|pad|>", "<|im_start|>", "<|im_end|>", "<|unk|>"
TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
ROLES = ["system", "user", "assistant"]
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def tiny(
    folder: str,
    *,
    seed: int = 0,
    hidden: int = 128,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    feed_forward: int = 384,
    vocabulary: Literal["characters", "bytes"] = "characters",
    max_positions: int = 512,
    added: list[str] | None = None,
) -> str:
    """Write the model and the tokenizer as `from_pretrained` reads them, and return the folder.

    The weights are fp32, drawn from `seed` alone; the defaults make 0.41 million. `vocabulary`: characters of ASCII,
    one token each (others become <|unk|>), or the 256 bytes. The tags of TAGS and `added` are single tokens in
    both, and stay in decoded text. Embeddings are padded to a multiple of 64.
    """
    import torch
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    tokenizer = character_tokenizer(added or []) if vocabulary == "characters" else byte_tokenizer(added or [])
    config = Qwen3Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=hidden,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        max_position_embeddings=max_positions,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def character_tokenizer(added: list[str]) -> Any:
    """107 tokens and `added`: printable ASCII, newline, the tags, the names of the roles, four special tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    whole = [*TAGS, *added, *ROLES]
    tokens = [PAD, START, END, UNKNOWN, *TAGS, *ROLES, "\n", *map(chr, range(32, 127)), *added]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=UNKNOWN))
    pattern = "|".join(map(re.escape, whole)) + r"|[\s\S]"
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return _fast(tokenizer, unk_token=UNKNOWN)


def byte_tokenizer(added: list[str]) -> Any:
    """259 tokens, the tags and `added`: three special tokens and every byte, so that any text comes back as it was."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = [PAD, START, END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in [*TAGS, *added]])
    return _fast(tokenizer)


def _fast(tokenizer: Any, **special: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[START],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHATML,
        **special,
    )
