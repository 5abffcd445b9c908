"""Step data: joined, found among tokens of one or many bytes, replayed, assembled; the loss on them by hand."""

import json
import math

import pytest
import torch
from torch import tensor
from torch.testing import assert_close
from transformers import AutoTokenizer

from llmrl.combiners.process_rewards import process_rewards
from llmrl.config import Data
from llmrl.data.formats import to_prompt
from llmrl.data.prompts import load
from llmrl.data.render import render_completion
from llmrl.data.steps import joined, laid_on_sampled, laid_on_written
from llmrl.errors import DataError, RecipeError
from llmrl.objectives.process import process_reward
from llmrl.policy.tiny import tiny
from llmrl.rollout.engine import Context
from llmrl.rollout.replay import ReplayEngine
from llmrl.scoring import from_function
from llmrl.training.assemble import assemble
from llmrl.training.credit import reward
from llmrl.training.ranks import Ranks
from llmrl.types import Completion, Group, Prompt, Rollout, Sampling, Score

WORDS = ["Zürich → 東京", "🙂 = 2", "so 4"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Every byte a token, so that most characters here are several."""
    folder = tiny(str(tmp_path_factory.mktemp("bytes")), hidden=16, layers=1, heads=2, kv_heads=1, vocabulary="bytes")
    return AutoTokenizer.from_pretrained(folder)


def slow_places(ids, text, steps, tokenizer):
    """By trying every prefix: the first that holds all of the step's characters."""
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    start = whole.index(text)
    return [
        next(
            n
            for n in range(1, len(ids) + 1)
            if tokenizer.decode(ids[:n], skip_special_tokens=True).startswith(whole[: start + end])
        )
        - 1
        for end, _ in steps
    ]


def test_the_loss_on_the_worked_labels():
    # scores 1 - 0 and .2 - .5: -(.8 ls(1) + .2 ls(-1)) = .513262 and -ls(.3) = .554355; their mean is .533808
    scores = tensor([[9.0, 1.0, 9.0, -0.3]], requires_grad=True)
    labels = tensor([[math.nan, 0.8, math.nan, 0.0]])
    mask = tensor([[False, True, False, True]])
    loss = process_reward(scores, labels, mask)
    assert_close(loss.values.detach(), tensor([[0, 0.513262, 0, 0.554355]]), rtol=0, atol=1e-6)
    assert float(loss.values.detach()[mask].mean()) == pytest.approx(0.533808, abs=1e-6)
    assert loss.stats["steps/accuracy"][mask].tolist() == [1.0, 1.0]
    loss.values.sum().backward()  # sigmoid(score) - label
    assert_close(scores.grad, tensor([[0, 0.731059 - 0.8, 0, 0.425557]]), rtol=0, atol=1e-6)


def test_a_counted_token_without_a_label_has_no_loss():
    loss = process_reward(tensor([[2.0, 3.0]]), tensor([[math.nan, 1.0]]), tensor([[True, True]]))
    assert loss.values[0, 0] == 0 and loss.values[0, 1] > 0


def test_steps_are_joined_with_the_tag_after_each():
    assert joined(["a", "bc"], [True, 0.25], "\n") == ("a\nbc\n", ((2, 1.0), (5, 0.25)))


@pytest.mark.parametrize(
    "steps, labels, message",
    [
        ([], [], "steps are"),
        ("ab", [1, 0], "steps are"),
        (["a", ""], [1, 0], "none of them empty"),
        (["a", "b"], [1], "one label for each of 2 steps"),
        (["a"], 1, "labels are 1"),
        (["a"], [1.5], "from 0 to 1"),
        (["a"], ["yes"], "a step's label is 'yes'"),
        (["a"], [math.nan], "label is nan"),
        (["a"], [-1], "label is -1"),
    ],
)
def test_bad_step_data_is_refused(steps, labels, message):
    with pytest.raises(DataError, match=f"row 3: .*{message}"):
        to_prompt({"prompt": "q", "steps": steps, "labels": labels}, Data(source="x"), 3)


@pytest.mark.parametrize("names", [("steps", "labels"), ("completions", "labels")])
def test_both_names_of_step_data(names):
    row = {"prompt": "2+2", names[0]: ["two", "four"], names[1]: [True, False], "answer": "4"}
    prompt = to_prompt(row, Data(source="x", step_tag=" ки"), 1)
    (answer,) = prompt.completions
    assert (answer.text, answer.steps) == ("two киfour ки", ((6, 1.0), (13, 0.0)))
    assert prompt.reference == "4" and prompt.columns == {"answer": "4"}
    chat = to_prompt(row | {"prompt": [{"role": "user", "content": "2+2"}]}, Data(source="x", format="steps"), 1)
    assert chat.completions[0].messages == ({"role": "assistant", "content": "two\nfour\n"},)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("tag", ["\n", " ки", "→"])
def test_a_step_lies_on_the_token_that_ends_it(tokenizer, chat, tag):
    text, steps = joined(WORDS, [1, 0, 1], tag)
    prompt = Prompt("a", messages=({"role": "user", "content": "q"},)) if chat else Prompt("a", text="q")
    answer = Completion(text, ({"role": "assistant", "content": text},) if chat else None, steps=steps)
    ids = render_completion(prompt, answer, tokenizer)
    for found in (laid_on_written(prompt, answer, ids, tokenizer), laid_on_sampled(ids, text, steps, tokenizer)):
        assert [place for place, _ in found] == slow_places(ids, text, steps, tokenizer)
        assert [number for _, number in found] == [1, 0, 1]
        for (place, _), (end, _) in zip(found, steps, strict=True):
            assert place + 1 == len(text[:end].encode())  # a byte a token: the last byte of the step


def test_a_token_that_reaches_over_the_end_of_a_step_holds_it(tokenizer):
    merged = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    merged.add_tokens(["b\nc"])
    answer = Completion("ab\ncd\n", steps=((3, 1.0), (6, 0.0)))
    ids = render_completion(Prompt("a", text="q"), answer, merged)
    assert [merged.decode([i]) for i in ids[:4]] == ["a", "b\nc", "d", "\n"]
    assert laid_on_written(Prompt("a", text="q"), answer, ids, merged) == ((1, 1.0), (3, 0.0))
    assert laid_on_sampled(ids, answer.text, answer.steps, merged) == ((1, 1.0), (3, 0.0))


def test_characters_that_the_tokenizer_does_not_know_move_no_label(tiny_folder):
    known = AutoTokenizer.from_pretrained(tiny_folder)  # é and the null are <|unk|>, which decoding leaves out
    answer = Completion("é\x00\nb\n", steps=((3, 1.0), (5, 0.0)))
    ids = render_completion(Prompt("a", text="q"), answer, known)
    assert laid_on_written(Prompt("a", text="q"), answer, ids, known) == ((2, 1.0), (4, 0.0))


def test_a_template_that_takes_the_last_tag_off_is_refused(tokenizer):
    trimming = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    trimming.chat_template = tokenizer.chat_template.replace("message['content']", "message['content'] | trim")
    prompt = Prompt("a", messages=({"role": "user", "content": "q"},))
    for tag, fine in (("\n", False), ("#", True)):
        text, steps = joined(["a", "b"], [1, 0], tag)
        answer = Completion(text, ({"role": "assistant", "content": text},), steps=steps)
        ids = render_completion(prompt, answer, trimming)
        if fine:
            assert [place for place, _ in laid_on_written(prompt, answer, ids, trimming)] == [1, 3]
        else:
            with pytest.raises(DataError, match="takes the last tag off"):
                laid_on_written(prompt, answer, ids, trimming)


def test_rollouts_of_broken_bytes_and_wrong_ends_do_not_raise(tokenizer):
    ids = [tokenizer("é")["input_ids"][0]] * 3 + list(tokenizer("ab")["input_ids"]) + [tokenizer.eos_token_id]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    found = laid_on_sampled(ids, text, ((-5, 0.0), (0, 1.0), (len(text), 2.0), (10**9, 3.0)), tokenizer)
    assert [place for place, _ in found] == [0, 0, 4, 4]
    assert laid_on_sampled([], "", ((3, 1.0),), tokenizer) == ((0, 1.0),)


def replayed(tokenizer, rows, limit):
    prompts = [to_prompt(row, Data(source="x"), 1) for row in rows]
    engine = ReplayEngine(Context(None, tokenizer, (2,), 100, limit))
    found = engine.generate(prompts, Sampling(limit), 1, [0] * len(rows))
    groups = [Group(p, tuple(rs)) for p, rs in zip(prompts, found, strict=True)]
    return groups, [(g, 0) for g in range(len(groups))], prompts


def test_labels_reach_their_tokens_and_only_those_count(tokenizer):
    groups, places, prompts = replayed(
        tokenizer,
        [
            {"prompt": "q", "steps": ["é", "b"], "labels": [0.5, 0.0]},
            {"prompt": "q", "steps": ["a", "bcdef"], "labels": [1, 1]},
        ],
        6,
    )
    batch = assemble(groups, places, prompts, 0, [], 1.0, {"step_labels", "scores"})
    assert batch.arrays["loss_mask"].nonzero().tolist() == [[0, 2], [0, 4], [1, 1]]  # the last one lies beyond the cut
    assert batch.arrays["step_labels"][batch.arrays["loss_mask"]].tolist() == [0.5, 0.0, 1.0]
    assert batch.arrays["lengths"].tolist() == [2, 1] and batch.arrays["truncated"].tolist() == [False, True]
    plain = assemble(groups, places, prompts, 0, [], 1.0, {"logprobs"})
    assert plain.arrays["loss_mask"].sum() == 6 + 6 and "step_labels" not in plain.arrays


def test_an_answer_without_labels_is_refused(tokenizer):
    groups, places, prompts = replayed(tokenizer, [{"prompt": "q", "completion": "a"}], 6)
    with pytest.raises(DataError, match="trains on step labels, and an answer has none"):
        assemble(groups, places, prompts, 0, [], 1.0, {"step_labels"})


def test_two_steps_in_one_token_are_refused_at_load(tokenizer, tmp_path):
    added = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    added.add_tokens(["a\nb\n"])
    rows = tmp_path / "rows.jsonl"
    given = [{"prompt": "q", "steps": steps, "labels": [1, 0]} for steps in (["c", "d"], ["a", "b"])]
    rows.write_text("".join(json.dumps(row) + "\n" for row in given))
    found = load(Data(source=str(rows)), added, seed=0, answers=True)
    assert len(found) == 1 and "row 2: two steps end in one token" in found.report.reasons[0]


def judge(prompt, rollout) -> Score:
    return Score(0.0)


def critic(prompt, rollout) -> Score:
    return Score(0.0)


def test_process_rewards_of_scorers_lie_on_their_tokens(tokenizer):
    ids = tuple(tokenizer("aé\nb")["input_ids"])
    rollout = Rollout(ids, "aé\nb", logprobs=(-1.0,) * len(ids))
    scores = {"judge": Score(1.0, steps=((3, 0.5), (4, 0.25))), "critic": Score(None, steps=((4, 2.0),))}
    groups = [Group(Prompt("a", text="q", ids=(5,)), (rollout,), (scores,))]
    scorers = [from_function(judge), from_function(critic)]
    scorers[1] = type(scorers[1])(**vars(scorers[1]) | {"weight": -0.5})
    batch = assemble(groups, [(0, 0)], [groups[0].prompt], 0, scorers, 1.0, {"step_rewards"}, tokenizer)
    assert batch.arrays["step_rewards"].tolist() == [[0, 0, 0, 0.5, 0.25 - 1.0]]
    assert "step_rewards" not in assemble(groups, [(0, 0)], [groups[0].prompt], 0, scorers, 1.0).arrays


def test_process_rewards_stand_beside_the_outcome():
    mask = tensor([[True, True, True, False], [True, False, False, False]])
    steps = tensor([[0.5, 0.0, 0.25, math.nan], [-1.0, 9.0, 9.0, 9.0]])
    found = process_rewards(tensor([1.0, 2.0]), steps, mask, outcome_coef=2.0, step_coef=0.5)
    assert_close(found, tensor([[0.25, 0, 2.125, 0], [3.5, 0, 0, 0]]))


def test_a_second_part_that_lays_rewards_on_tokens_is_refused():
    from llmrl.batch import Batch

    def another(rewards, loss_mask):
        return rewards[:, None] * loss_mask

    arrays = {
        "rewards": torch.ones(2),
        "step_rewards": torch.zeros(2, 3),
        "loss_mask": torch.ones(2, 3, dtype=torch.bool),
    }
    with pytest.raises(RecipeError, match="another would overwrite the token_rewards"):
        reward(Batch([], arrays), [process_rewards, another], Ranks())
