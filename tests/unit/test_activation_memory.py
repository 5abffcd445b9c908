"""What is estimated of memory against what autograd really keeps."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from llmrl.config import Model
from llmrl.policy import memory
from llmrl.policy.forward import PolicyModule, Rows
from llmrl.policy.memory import activation_bytes, host_bytes, recomputes

SIZES = {
    "vocab_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
MODELS = {"llama": (LlamaForCausalLM, LlamaConfig), "qwen3": (Qwen3ForCausalLM, Qwen3Config)}


def kept(model, tokens, precision):
    """Bytes of all tensors that one forward pass of two rows saves, parameters left out."""
    module = PolicyModule(model)
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address is used twice
        return tensor

    ids = tuple(i % 100 for i in range(tokens // 2 + 1))
    rows = Rows([ids[:32], ids[1:33]], [ids[32:]] * 2, [(True, *[False] * (len(ids) - 33))] * 2, [1.0, 1.0])
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            module(rows, len(ids))
    return sum(size for size, _ in storages.values())


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("inner", [256, 768])
@pytest.mark.parametrize("kind", MODELS)
def test_the_estimate_is_within_a_third(kind, inner, precision, recomputed):
    make, config = MODELS[kind]
    model = make(config(hidden_size=128, intermediate_size=inner, **SIZES))
    if recomputed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
    estimate = activation_bytes(model.config, 512, precision, recomputed)
    if recomputed:  # one layer's own are there only while the backward pass is in it
        estimate -= activation_bytes(model.config, 512, precision, False) / model.config.num_hidden_layers
    assert 2 / 3 < kept(model, 512, precision) / estimate < 4 / 3


@pytest.mark.parametrize(
    ("asked", "free", "expected"),
    [("auto", 1e12, False), ("auto", 1e5, True), (True, 1e12, True), (False, 1e5, False)],
)
def test_activations_are_computed_again_where_memory_asks_for_it_or_the_recipe(asked, free, expected, monkeypatch):
    monkeypatch.setattr(memory, "host_bytes", lambda: free)
    model = LlamaForCausalLM(LlamaConfig(hidden_size=32, intermediate_size=64, **SIZES))
    config = Model.model_validate({"path": "anywhere", "gradient_checkpointing": asked})
    assert recomputes(model, config, 8192) is expected
    assert recomputes(model, config, None) is (asked is True)


def test_processes_of_one_machine_share_its_memory(monkeypatch):
    model = LlamaForCausalLM(LlamaConfig(hidden_size=32, intermediate_size=64, **SIZES))
    trained = memory.OPTIMIZER_BYTES * sum(p.numel() for p in model.parameters())
    monkeypatch.setattr(memory, "host_bytes", lambda: 1e9)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory.free_bytes(model) == 2.5e8 - trained


def test_the_host_has_some_memory():
    assert 1 << 28 < host_bytes() < 1 << 50
