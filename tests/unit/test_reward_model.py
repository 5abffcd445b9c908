"""Reward models from pairs: the loss by hand, scores against transformers' own classifier, data, export."""

import json
import math

import pytest
import torch
from conftest import enlarged
from torch import tensor
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from llmrl.batch import Batch, call
from llmrl.config import Data, Model
from llmrl.data.formats import to_prompt
from llmrl.errors import DataError, ModelError
from llmrl.objectives.bradley_terry import bradley_terry
from llmrl.policy.forward import Rows
from llmrl.policy.load import load_policy, verdict_ids
from llmrl.policy.model import padding_id

LONG, SHORT = (3, 14, 15, 9, 26, 5, 35), (8,)
ROWS = Rows(
    contexts=[LONG, SHORT, LONG, LONG, SHORT],
    responses=[(31, 4, 15, 9, 26, 5, 3, 2), (2,), (7, 1, 8), (11,), (6, 6, 6, 6, 2)],
    masks=[(True,) * 8, (True,), (True, False, True), (True,), (False, True, True, False, True)],
    temperatures=[1.0, 0.7, 1.3, 0.5, 1.0],
)
WIDTH = 8
LORA = {"lora": {"rank": 4, "targets": "all-linear"}}


def test_the_loss_on_the_worked_pairs():
    # -ls(.2) = .598139 + .01·1.3² = .016900;  -ls(-.8) = 1.171101 + .01·.7² = .004900;  their mean is .895520
    chosen = tensor([1.0, 0.2], requires_grad=True)
    loss = bradley_terry(chosen, tensor([0.3, 0.5]), tensor([0.5, 0.5]), centre_coef=0.01)
    assert_close(loss.values.detach(), tensor([0.615039, 1.176001]), rtol=0, atol=1e-6)
    assert float(loss.values.detach().mean()) == pytest.approx(0.895520, abs=1e-6)
    assert loss.stats["pairs/accuracy"].tolist() == [1.0, 0.0] and loss.unit == "pair"
    loss.values.sum().backward()  # -(1 - sigmoid(d - m)) + 2 c (R_c + R_r)
    assert_close(chosen.grad, tensor([-0.450166 + 0.026, -0.689974 + 0.014]), rtol=0, atol=1e-6)


def test_huge_scores_stay_finite():
    chosen = tensor([1e4, -1e4], requires_grad=True)
    loss = bradley_terry(chosen, tensor([0.0, 0.0]), tensor([0.0, 0.0]))
    assert_close(loss.values.detach(), tensor([0.0, 1e4]))
    loss.values.sum().backward()
    assert chosen.grad.isfinite().all()


def test_the_score_of_an_answer_is_that_of_its_last_counted_token():
    mask = tensor([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)
    scores = tensor([[1.0, 2, 3, 4], [5, 6, 7, math.nan], [8, 9, 10, 11]])
    batch = Batch([None] * 3, {"scores": scores, "loss_mask": mask}, tensor([[1, 0]]))
    assert batch.read("end_scores").tolist() == [2, 7, 0]
    assert batch.read("chosen_end_scores").tolist() == [7] and batch.read("rejected_end_scores").tolist() == [2]


@pytest.mark.parametrize("shared", [True, False])
def test_scores_are_those_of_the_state_that_has_read_the_token(make_policy, shared):
    policy = make_policy(scores=True)
    found = policy.module(ROWS, WIDTH, shared=shared, scores=True)
    assert found.keys() == {"logprobs", "scores"}
    expected = torch.zeros(5, WIDTH)
    for i, (context, response) in enumerate(zip(ROWS.contexts, ROWS.responses, strict=True)):
        for t, counted in enumerate(ROWS.masks[i]):
            if counted:
                ids = tensor([[*context, *response[: t + 1]]])
                expected[i, t] = policy.module.score_head(policy.model.model(input_ids=ids).last_hidden_state[0, -1])
    assert_close(found["scores"], expected, rtol=1e-5, atol=1e-5)
    assert_close(found["logprobs"], policy.module(ROWS, WIDTH, shared=shared)["logprobs"], rtol=1e-6, atol=2e-6)
    only = policy.module(ROWS, WIDTH, shared=shared, scores=True, logprobs=False)
    assert only.keys() == {"scores"} and torch.equal(only["scores"], found["scores"])


@pytest.mark.parametrize("shared", [True, False])
def test_scores_by_verdict_tokens_are_a_difference_of_logits(make_policy, shared, monkeypatch):
    policy = make_policy(scores=True, config={"verdict_tokens": ["+", "-"]})
    right, wrong = (policy.tokenizer(token)["input_ids"][0] for token in "+-")
    monkeypatch.setattr("llmrl.policy.forward.CHUNK_ELEMENTS", 4 * 128)  # four positions at a time
    found = policy.module(ROWS, WIDTH, shared=shared, scores=True, logprobs=False)["scores"]
    for i, (context, response) in enumerate(zip(ROWS.contexts, ROWS.responses, strict=True)):
        logits = policy.model(input_ids=tensor([[*context, *response]])).logits[0, len(context) :]
        expected = torch.where(tensor(ROWS.masks[i]), logits[:, right] - logits[:, wrong], 0.0)
        assert_close(found[i, : len(response)], expected, rtol=1e-5, atol=1e-5)
    assert policy.module.score_head is None


def test_the_output_layer_is_not_used_for_scores_alone(make_policy):
    policy = make_policy(scores=True)
    policy.model.lm_head.register_forward_hook(lambda *_: pytest.fail("logits were computed"))
    policy.shared = False  # the first shared pass is compared by log-probabilities
    policy.statistics(ROWS, WIDTH, scores=True, logprobs=False)["scores"].sum().backward()
    assert policy.module.score_head.weight.grad.abs().max() > 0


def test_a_score_head_begins_at_zero_without_bias(tiny_folder, tmp_path):
    policy = load_policy(Model(path=tiny_folder), tmp_path, seed=0, scores=True)
    assert (policy.statistics(ROWS, WIDTH, scores=True)["scores"] == 0).all() and policy.module.score_head.bias is None
    policy.export(tmp_path / "untrained")  # the head belongs to a later stage: this is a plain language model
    assert json.loads((tmp_path / "untrained" / "config.json").read_text())["architectures"] == ["Qwen3ForCausalLM"]
    assert not (tmp_path / "untrained" / "score_head.safetensors").exists()


@pytest.mark.parametrize("config, inside", [({}, "."), (LORA, "merged")], ids=["whole", "adapters"])
def test_what_is_exported_is_transformers_own_classifier(make_policy, tmp_path, config, inside):
    policy = make_policy(scores=True, config=config)
    policy.export(tmp_path / "export")
    folder = tmp_path / "export" / inside
    plain = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
    assert type(plain).__name__ == "Qwen3ForSequenceClassification" and plain.score.bias is None
    with torch.no_grad():
        found = policy.statistics(ROWS, WIDTH, scores=True)["scores"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert plain.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    whole = [[*c, *r] for c, r in zip(ROWS.contexts, ROWS.responses, strict=True)]
    width = max(map(len, whole))
    ids = tensor([[*w, *[tokenizer.pad_token_id] * (width - len(w))] for w in whole])
    mask = tensor([[1] * len(w) + [0] * (width - len(w)) for w in whole])
    with torch.no_grad():
        theirs = plain(input_ids=ids, attention_mask=mask).logits[:, 0]
    ours = torch.stack([found[i, len(r) - 1] for i, r in enumerate(ROWS.responses)])
    assert ours.abs().min() > 0.05 and ours.std() > 0.5
    assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [{}, LORA], ids=["whole", "adapters"])
def test_an_exported_reward_model_goes_on_and_still_speaks(make_policy, tiny_folder, tmp_path, config):
    policy = make_policy(scores=True, config=config)
    policy.export(tmp_path / "export")
    made = Model.model_validate({"path": tiny_folder} | config)
    if not config:
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
        ids = tensor([[5, 6, 7]])
        assert_close(plain(input_ids=ids).logits, policy.model(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
        again = load_policy(made, tmp_path, seed=9, scores=True, trained=str(tmp_path / "export"))
        with torch.no_grad():
            both = [p.statistics(ROWS, WIDTH, scores=True)["scores"] for p in (policy, again)]
        assert_close(*both)
    again = load_policy(made, tmp_path, seed=9, scores=True, trained=str(tmp_path / "export"))
    assert torch.equal(again.module.score_head.weight, policy.module.score_head.weight)


def test_a_tokenizer_that_pads_with_the_end_gets_another_padding(tiny_folder):
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    assert padding_id(tokenizer) == tokenizer.pad_token_id
    tokenizer.pad_token = tokenizer.eos_token
    assert padding_id(tokenizer) not in (tokenizer.eos_token_id, None)

    class Bare:
        pad_token_id = eos_token_id = 2
        added_tokens_decoder = {2: type("Token", (), {"special": True})()}
        chat_template = None

    with pytest.raises(ModelError, match="needs a padding token other than"):
        padding_id(Bare())


def test_verdicts_are_two_single_tokens(tiny_folder):
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    assert verdict_ids(tokenizer, ["+", "-"]) == tuple(tokenizer("+-")["input_ids"])
    for wrong in (["+"], ["+", "+"], ["good", "bad"], ["+", "-", "0"]):
        with pytest.raises(ModelError, match="expected two different single tokens"):
            verdict_ids(tokenizer, wrong)


def convert(row, **options):
    return to_prompt(row, Data(source="x", **options), 3)


def test_margins_come_from_a_column():
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    assert convert(row | {"margin": 2}).columns == {"margin": 2.0} and convert(row).columns == {}
    assert convert(row | {"strength": 0.5}, columns={"margin": "strength"}).columns == {"margin": 0.5}
    assert convert({"prompt": "a", "margin": "wide"}).columns == {"margin": "wide"}  # no pair: any column of the row
    for wrong in ("wide", True, math.inf):
        with pytest.raises(DataError, match="row 3: margin is .* expected a number"):
            convert(row | {"margin": wrong})


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "chosen": "b", "rejected": "b"},
        {
            "prompt": [{"role": "user", "content": "a"}],
            "chosen": "b",
            "rejected": [{"role": "assistant", "content": "b"}],
        },
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: b "},
    ],
)
def test_equal_answers_are_refused(row):
    with pytest.raises(DataError, match="row 3: chosen and rejected are the same"):
        convert(row)


def test_enlarged_heads_show(make_policy):
    assert enlarged(make_policy(scores=True), 3).module.score_head.weight.abs().max() > 0.1


def test_the_gradient_is_that_of_transformers_own_classifier(make_policy, tmp_path):
    policy = make_policy(scores=True)
    policy.export(tmp_path / "export")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export").eval()
    chosen, rejected = (*LONG, 31, 4, 15, 2), (*LONG, 7, 2)
    pad = plain.config.pad_token_id
    ids = tensor([chosen, [*rejected, *[pad] * (len(chosen) - len(rejected))]])
    theirs = plain(input_ids=ids, attention_mask=(ids != pad).long()).logits[:, 0]
    (-torch.nn.functional.logsigmoid(theirs[0] - theirs[1])).backward()
    rows = Rows([LONG, LONG], [chosen[len(LONG) :], rejected[len(LONG) :]], [(True,) * 4, (True,) * 2], [1.0, 1.0])
    out = policy.statistics(rows, 4, scores=True, logprobs=False)
    mask = tensor([[True] * 4, [True, True, False, False]])
    batch = Batch([None] * 2, out | {"loss_mask": mask, "margins": torch.zeros(2)}, tensor([[0, 1]]))
    call(bradley_terry, batch).values.sum().backward()
    found, expected = dict(policy.model.model.named_parameters()), dict(plain.model.named_parameters())
    assert found.keys() == expected.keys()
    for name, parameter in expected.items():
        assert_close(found[name].grad, parameter.grad, rtol=1e-4, atol=1e-5)
    assert_close(policy.module.score_head.weight.grad, plain.score.weight.grad, rtol=1e-4, atol=1e-5)
