from pathlib import Path

import pytest
import torch
from conftest import enlarged
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from llmrl.config import Model, Training
from llmrl.errors import ModelError, RecipeError
from llmrl.policy import model as policy_model
from llmrl.policy.forward import LogitHead, Rows
from llmrl.policy.load import load_policy
from llmrl.run import make_optimizer

ROWS = Rows(
    [(5, 6, 7), (5, 6, 7), (8,)], [(9, 10, 11), (12,), (3, 4)], [(True,) * 3, (True,), (True, True)], [1.0, 0.7, 1.0]
)
EVERYWHERE = {"lora": {"rank": 4, "targets": "all-linear"}}
HEAD = {"lora": {"rank": 4, "targets": ["lm_head", "q_proj"]}}


def logprobs(policy, **options):
    with torch.no_grad():
        return policy.statistics(ROWS, 3, **options)["logprobs"]


def dense(model):
    """Log-probabilities by the model's own logits, one row at a time."""
    out = torch.zeros(3, 3)
    for i, (context, response) in enumerate(zip(ROWS.contexts, ROWS.responses, strict=True)):
        logits = model(input_ids=torch.tensor([[*context, *response]])).logits[0] / ROWS.temperatures[i]
        for t, token in enumerate(response):
            out[i, t] = logits[len(context) + t - 1].log_softmax(-1)[token]
    return out.detach()


def with_dropout(folder, tiny_folder, kind):
    """A folder with a model that drops half of everything, and a tokenizer."""
    if kind == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, embd_pdrop=0.5, attn_pdrop=0.5, resid_pdrop=0.5)
        )
    else:
        model = OPTForCausalLM(
            OPTConfig(
                vocab_size=64,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                ffn_dim=64,
                word_embed_proj_dim=32,
                dropout=0.5,
                attention_dropout=0.5,
                pad_token_id=0,
            )
        )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(folder)
    return str(folder)


@pytest.mark.filterwarnings("error:sharing")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_dropout_is_off_in_every_mode(kind, checkpointing, make_policy, tiny_folder, tmp_path):
    folder = with_dropout(tmp_path / "dropping", tiny_folder, kind)
    policy = make_policy(folder, config={"gradient_checkpointing": checkpointing})
    first, second = (policy.statistics(ROWS, 3)["logprobs"] for _ in range(2))
    assert torch.equal(first, second) and first.requires_grad


@pytest.mark.filterwarnings("error:sharing")
def test_activation_checkpointing_changes_no_gradient(make_policy):
    found = []  # and no warning: a prompt is shared with it, too
    for checkpointing in (False, True):
        policy = make_policy(config={"gradient_checkpointing": checkpointing})
        assert policy.shared and policy.module.shares(ROWS)
        assert policy.model.training == checkpointing
        policy.statistics(ROWS, 3)["logprobs"].sum().backward()
        found.append([p.grad for _, p in policy.trainable()])
    assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [EVERYWHERE, HEAD], ids=["every layer", "the head too"])
@pytest.mark.parametrize("shared", ["auto", "off"])
def test_adapters_are_in_every_number_and_out_of_the_reference(config, shared, make_policy):
    policy = make_policy(config=config | {"shared_prompt": shared})
    assert_close(logprobs(policy), dense(policy.model), rtol=1e-5, atol=1e-5)
    with policy.model.disable_adapter():
        base = dense(policy.model)
    assert (base - dense(policy.model)).abs().max() > 0.1
    with policy.reference():
        assert_close(logprobs(policy), base, rtol=1e-5, atol=1e-5)
    assert_close(logprobs(policy), dense(policy.model), rtol=1e-5, atol=1e-5)


def test_only_adapters_are_trained_and_the_heads_adapter_gets_a_gradient(make_policy):
    policy = make_policy(config=HEAD)
    names = [n for n, _ in policy.trainable()]
    assert names and all(".lora_" in n for n in names) and any("lm_head" in n for n in names)
    policy.statistics(ROWS, 3)["logprobs"].sum().backward()
    assert all((p.grad != 0).any() for _, p in policy.trainable())


@pytest.mark.parametrize("config", [None, EVERYWHERE, HEAD], ids=["whole", "every layer", "the head too"])
def test_named_weights_are_those_of_a_plain_model(config, make_policy, tiny_folder):
    policy = make_policy(config=config)
    weights = dict(policy.named_weights())
    plain = AutoModelForCausalLM.from_pretrained(tiny_folder)
    assert weights.keys() == {*plain.state_dict(), "lm_head.weight"}
    # a plain model ties its head, so the head's own weight has to be put beside the embedding
    plain.lm_head.weight = torch.nn.Parameter(plain.lm_head.weight.detach().clone())
    plain.load_state_dict(weights)
    assert_close(dense(plain), dense(policy.model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", [None, EVERYWHERE], ids=["whole", "adapters"])
def test_what_is_exported_comes_back(config, make_policy, tiny_folder, tmp_path):
    policy = make_policy(config=config)
    policy.export(tmp_path / "export")
    if config is None:  # what anybody's transformers loads
        assert_close(
            dense(AutoModelForCausalLM.from_pretrained(tmp_path / "export")), logprobs(policy), rtol=1e-4, atol=1e-4
        )
        made = Model(path=tiny_folder)
        again = load_policy(made, tmp_path, seed=9, trained=str(tmp_path / "export"))
        assert_close(logprobs(again), logprobs(policy))
    assert AutoTokenizer.from_pretrained(tmp_path / "export")("ab").input_ids == policy.tokenizer("ab").input_ids


def test_exported_adapters_go_on_in_the_next_stage(tiny_folder, tmp_path):
    made = Model.model_validate({"path": tiny_folder} | EVERYWHERE)
    policy = load_policy(made, tmp_path, seed=0)
    with torch.no_grad():
        for _, parameter in policy.trainable():
            parameter.normal_(0, 0.3)
    policy.export(tmp_path / "export")
    again = load_policy(made, tmp_path, seed=9, trained=str(tmp_path / "export"))
    assert_close(logprobs(again), logprobs(policy))
    assert [n for n, _ in again.trainable()] == [n for n, _ in policy.trainable()]


def test_a_value_head_begins_at_zero_and_is_trained(make_policy, tiny_folder, tmp_path):
    policy = load_policy(Model(path=tiny_folder), tmp_path, seed=0, values=True)
    assert (policy.statistics(ROWS, 3, values=True)["values"] == 0).all()
    policy = make_policy(values=True)
    policy.statistics(ROWS, 3, values=True)["values"].sum().backward()
    assert all((p.grad != 0).any() for p in policy.module.value_head.parameters())
    assert policy.model.get_input_embeddings().weight.grad is not None  # the critic shares the trunk


def test_added_tokens_get_ids_and_rows_and_leave_the_others_alone(tiny_folder, tmp_path):
    made = Model(path=tiny_folder, added_tokens=[f"<extra{i}>" for i in range(30)])
    policy = load_policy(made, tmp_path, seed=0)
    plain = load_policy(Model(path=tiny_folder), tmp_path, seed=0)
    ids = policy.tokenizer("<extra0><extra29>", add_special_tokens=False)["input_ids"]
    assert ids == [107, 136] and policy.model.get_input_embeddings().num_embeddings >= 137
    old, new = plain.model.get_input_embeddings().weight, policy.model.get_input_embeddings().weight
    assert torch.equal(new[:128], old) and (new[128:137].norm(dim=1) > 0).all()
    assert "<|im_start|>" in policy.tokenizer.all_special_tokens
    assert len(AutoTokenizer.from_pretrained(policy.path)) == 137  # an engine reads the enlarged folder


def test_half_precision_keeps_whole_master_weights(make_policy):
    """At a rate of 1e-6 most steps are lost in bf16 weights, and none in fp32 ones."""
    policy = make_policy(config={"precision": "bf16"})
    assert {p.dtype for _, p in policy.trainable()} == {torch.float32}
    out = policy.statistics(ROWS, 3, entropy=True)
    assert all(numbers.dtype == torch.float32 for numbers in out.values())
    assert (out["logprobs"] - dense(policy.model)).abs().max() < 0.2
    before = [p.detach().clone() for _, p in policy.trainable()]
    optimizer = make_optimizer(policy, Training(learning_rate=1e-6))
    out["logprobs"].sum().backward()
    optimizer.step()
    moved = sum(int((p != b).sum()) for (_, p), b in zip(policy.trainable(), before, strict=True))
    reached = sum(int((p.grad != 0).sum()) for _, p in policy.trainable())
    assert moved > 0.9 * reached > 1000


def test_weight_decay_is_for_matrices(make_policy):
    matrices, others = make_optimizer(make_policy(), Training(weight_decay=0.1)).param_groups
    assert matrices["weight_decay"] == 0.1 and all(p.dim() >= 2 for p in matrices["params"])
    assert others["weight_decay"] == 0 and others["params"] and all(p.dim() < 2 for p in others["params"])


def test_a_stage_may_train_a_part_of_the_parameters(make_policy):
    policy = make_policy(values=True)
    (head,), (bias,) = (g["params"] for g in make_optimizer(policy, Training(train_only=["value_head"])).param_groups)
    assert head is policy.module.value_head.weight and bias is policy.module.value_head.bias
    with pytest.raises(RecipeError, match=r"train_only: \['valuehead'\] leaves nothing to train.*value_head.bias"):
        make_optimizer(policy, Training(train_only=["valuehead"]))


def test_a_head_that_does_more_than_ours_is_refused(tiny_folder, tmp_path, monkeypatch):
    right = LogitHead.__call__
    monkeypatch.setattr(policy_model.LogitHead, "__call__", lambda self, hidden: right(self, hidden) + 1e-3)
    with pytest.raises(ModelError, match="Qwen3ForCausalLM: its logits are not its head"):
        load_policy(Model(path=tiny_folder), tmp_path, seed=0)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"model\.path: .*could not be loaded.*Expected a folder"):
        load_policy(Model(path=str(tmp_path)), tmp_path, seed=0)


def test_a_made_model_depends_on_the_seed_and_is_made_once(tmp_path):
    config = Model(make={"name": "tiny", "hidden": 32, "layers": 1})
    one, same = (load_policy(config, tmp_path / "a", seed=1) for _ in range(2))
    other = load_policy(config, tmp_path / "b", seed=2)
    assert torch.equal(logprobs(one), logprobs(same)) and not torch.equal(logprobs(one), logprobs(other))
    assert Path(one.path).is_dir()


def test_the_tests_own_weights_show_the_context(make_policy):
    changed = enlarged(make_policy(), seed=3)
    assert (logprobs(changed) - logprobs(make_policy())).abs().max() > 0.5
