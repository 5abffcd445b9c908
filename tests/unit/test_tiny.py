from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmrl import catalog
from llmrl.policy.tiny import tiny

TEXT = "<think>37-2=35</think><answer>35</answer>\n<EF>user ok</EF>"


@pytest.fixture(scope="module", params=["characters", "bytes"])
def made(request, tmp_path_factory):
    """(vocabulary, model and tokenizer as any loader gets them)."""
    folder = tiny(str(tmp_path_factory.mktemp("tiny")), vocabulary=request.param, added=["<EF>", "</EF>"], hidden=32)
    return request.param, AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def test_the_default_is_the_quickstarts_model(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny(str(tmp_path)))
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert len(tokenizer) == 107 and model.config.vocab_size == 128
    assert model.num_parameters() == 410_368 and model.config.max_position_embeddings == 512
    assert model.dtype == torch.float32 and model.config.model_type == "qwen3"
    assert (tmp_path / "model.safetensors").exists()


def test_one_seed_writes_the_same_files_and_leaves_torchs_generator_alone(tmp_path):
    state = torch.get_rng_state()
    one, same, other = (Path(tiny(str(tmp_path / name), seed=seed)) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert torch.equal(torch.get_rng_state(), state)
    names = sorted(file.name for file in one.iterdir())
    assert all((one / name).read_bytes() == (same / name).read_bytes() for name in names)
    different = [name for name in names if (one / name).read_bytes() != (other / name).read_bytes()]
    assert different == ["model.safetensors"]


def test_ids_that_end_and_pad_are_the_tokenizers(made):
    _, model, tokenizer = made
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id == 0
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    assert model.generation_config.bos_token_id is None and tokenizer.bos_token_id is None
    assert model.config.vocab_size % 64 == 0 and model.config.vocab_size >= len(tokenizer)


def test_tags_and_added_tokens_are_single_and_stay_in_decoded_text(made):
    _, _, tokenizer = made
    ids = tokenizer(TEXT)["input_ids"]
    for tag in ("<think>", "</think>", "<answer>", "</answer>", "<EF>", "</EF>"):
        assert ids.count(tokenizer.convert_tokens_to_ids(tag)) == 1
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == TEXT


def test_any_text_can_be_encoded(made):
    vocabulary, model, tokenizer = made
    text = "héllo ☃\t don't  .\r\n"
    ids = tokenizer(text)["input_ids"]
    assert max(ids) < model.config.vocab_size
    if vocabulary == "bytes":
        assert len(ids) == len(text.encode()) and tokenizer.decode(ids) == text
    else:
        assert len(ids) == len(text) and ids.count(tokenizer.unk_token_id) == 4  # é, snowman, tab, carriage return


def test_the_template_writes_system_and_several_turns(made):
    _, _, tokenizer = made
    turns = [{"role": role, "content": role[0]} for role in ("system", "user", "assistant", "user")]
    assert tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
        "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_model_runs_and_decodes_ids_without_a_token(made):
    _, model, tokenizer = made
    out = model(torch.tensor([tokenizer("Hi")["input_ids"]])).logits
    assert out.shape[-1] == model.config.vocab_size and out.isfinite().all()
    assert tokenizer.decode([model.config.vocab_size - 1]) == ""  # rows that only pad the embedding


def test_sizes_are_options_of_the_catalog(tmp_path):
    assert catalog.get("models", "tiny") is tiny and catalog.inputs_of(tiny) == ["folder"]
    folder = tiny(str(tmp_path), hidden=64, layers=1, heads=2, kv_heads=1, feed_forward=96, max_positions=4096)
    config = AutoModelForCausalLM.from_pretrained(folder).config
    assert (config.hidden_size, config.num_hidden_layers, config.head_dim) == (64, 1, 32)
    assert (config.num_key_value_heads, config.intermediate_size, config.max_position_embeddings) == (1, 96, 4096)
