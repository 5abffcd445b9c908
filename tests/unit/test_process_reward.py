"""The scorer `process_reward`, best-of-n, and the labels that rollouts from prefixes give."""

import json
import math
import random
from dataclasses import replace

import pytest
import torch

from llmrl.config import Data, Model
from llmrl.data.steps import joined, laid_on_written
from llmrl.errors import DataError, ModelError
from llmrl.policy.forward import Rows
from llmrl.types import Group, Prompt, Rollout
from reward_models import process_reward as module
from reward_models.process_labels import Labelling, label, main, write_labels
from reward_models.process_reward import aggregated, best_of_n, process_reward, steps_of
from reward_models.rendered import answer, rendered

CHAT = Prompt("a", messages=({"role": "user", "content": "2+2="},))
TEXT = Prompt("b", text="2+2=")
VERDICTS = {"verdict_tokens": ["+", "-"]}


@pytest.fixture
def trained(make_policy, tmp_path):
    policy = make_policy(scores=True, config=VERDICTS)
    policy.export(tmp_path / "prm")
    module.judge.cache_clear()
    return policy, str(tmp_path / "prm")


def group(prompt, *answers):
    return Group(prompt, tuple(Rollout((0,), text) for text in answers))


def by_hand(policy, prompt, pieces, tag):
    """The probability of right after each step, by whole forward passes over what has been written so far."""
    text, ends = joined(pieces, [0] * len(pieces), tag)
    context, response = rendered(prompt, text, policy.tokenizer)
    written = replace(answer(prompt, text, policy.tokenizer), steps=ends)
    right, wrong = (policy.tokenizer(token)["input_ids"][0] for token in "+-")
    found = []
    for place, _ in laid_on_written(prompt, written, response, policy.tokenizer):
        with torch.no_grad():
            logits = policy.model(input_ids=torch.tensor([[*context, *response[: place + 1]]])).logits[0, -1]
        found.append(float(torch.stack([logits[right], logits[wrong]]).softmax(0)[0]))
    return found


@pytest.mark.parametrize("prompt", [CHAT, TEXT])
@pytest.mark.parametrize("budget", [1, 10**6])
def test_every_step_gets_the_probability_of_the_right_verdict(trained, prompt, budget):
    policy, path = trained
    groups = [group(prompt, "1+1=2\n\n  \n2+2=4", "4", "\n\n"), group(TEXT, "4\n")]
    found = process_reward(groups, path=path, batch_tokens=budget, tag="?\n", **VERDICTS)
    two, one, none = found[0]
    expected = by_hand(policy, prompt, ["1+1=2", "2+2=4"], "?\n")
    assert [number for _, number in two.steps] == pytest.approx(expected, abs=1e-5)
    assert [end for end, _ in two.steps] == [6, 15] and two.value == pytest.approx(min(expected), abs=1e-5)
    assert one.steps[0][1] == pytest.approx(by_hand(policy, prompt, ["4"], "?\n")[0], abs=1e-5)
    assert none.value == 0.0 and none.steps == () and none.error is None
    assert found[1][0].steps[0] == (2, pytest.approx(by_hand(policy, TEXT, ["4"], "?\n")[0], abs=1e-5))


def test_values_by_aggregate(trained):
    _, path = trained
    values = {}
    for how in ("min", "last", "mean", "product", "none"):
        ((one,),) = process_reward([group(CHAT, "1\n2\n3")], path=path, aggregate=how, **VERDICTS)
        values[how] = one.value
    right = [number for _, number in one.steps]
    assert values["none"] is None and len(right) == 3
    assert [values[how] for how in ("min", "last", "mean", "product")] == pytest.approx(
        [min(right), right[-1], sum(right) / 3, math.prod(right)]
    )


def test_the_head_of_its_own_serves_too_and_its_absence_is_refused(make_policy, tmp_path):
    policy = make_policy(scores=True)
    policy.export(tmp_path / "head")
    ((one,),) = process_reward([group(CHAT, "1\n2")], path=str(tmp_path / "head"))
    context, response = rendered(CHAT, "1\n2\n", policy.tokenizer)
    with torch.no_grad():
        scores = policy.statistics(Rows([context], [response], [[True] * 5], [1.0]), 5, scores=True)["scores"]
    assert [number for _, number in one.steps] == pytest.approx(scores.sigmoid()[0, [1, 3]].tolist(), abs=1e-5)
    make_policy().export(tmp_path / "plain")
    with pytest.raises(ValueError, match="set verdict_tokens as model.verdict_tokens was in training"):
        process_reward([group(CHAT, "1")], path=str(tmp_path / "plain"))
    with pytest.raises(ModelError, match="two different single tokens"):
        process_reward([group(CHAT, "1")], path=str(tmp_path / "plain"), verdict_tokens=["good", "bad"])


def test_hostile_responses(trained):
    _, path = trained
    texts = ["1\n2" * 200, "a" * 1_000_000, "\ud800\x00\n1", "1<|im_end|>\n+\n", "\n" * 1_000_000, "1\n" * 300]
    found = process_reward([group(CHAT, *texts)], path=path, **VERDICTS)[0]
    assert "512 positions" in found[0].error and "1,000,000 characters" in found[1].error
    assert found[2].error is None and len(found[2].steps) == 2 and len(found[3].steps) == 2
    assert found[4].value == 0.0 and "300 steps; at most 256" in found[5].error


def test_steps_are_what_stands_between_separators():
    assert steps_of("a\n\nbc\n", "\n") == [("a", 2), ("bc", 6)] and steps_of("a. b", ". ") == [("a", 3), ("b", 4)]
    assert steps_of("", "\n") == steps_of(" \n ", "\n") == []


def test_aggregates_by_hand():
    some = [0.5, 0.25, 0.75]
    assert [aggregated(some, how) for how in ("min", "last", "mean", "product")] == [0.25, 0.75, 0.5, 0.09375]
    assert aggregated([], "product") == 0.0


def test_the_first_of_equal_bests_is_taken():
    assert best_of_n([[0.1, 0.9, 0.9], [0.5, 0.5], [3.0]], [[1, 1, 0], [0, 1], [1]]) == [True, False, True]
    with pytest.raises(ValueError, match="one entry a response"):
        best_of_n([[0.1]], [[1, 0]])


@pytest.mark.parametrize(
    "kind, eta, expected",
    [
        ("entropy_regularised", 2.0, 0.716890),
        ("entropy_regularised", 1.0, 0.620115),
        ("entropy_regularised", -2.0, 0.283110),
        ("soft", 1.0, 0.5),
        ("hard", 1.0, 1.0),
        ("entropy_regularised", 0.0, 0.5),
        ("entropy_regularised", 1e-9, 0.5),
    ],
)
def test_labels_of_the_worked_outcomes(kind, eta, expected):
    assert label([1, 0, 0, 1], kind, eta) == pytest.approx(expected, abs=1e-6)


def test_labels_lie_between_mean_and_best_and_keep_the_ends():
    rng = random.Random(0)
    for _ in range(200):
        outcomes = [int(rng.random() < 0.4) for _ in range(8)]
        soft, er1, er2, hard = (
            label(outcomes, *how)
            for how in (("soft",), ("entropy_regularised", 1.0), ("entropy_regularised", 2.0), ("hard",))
        )
        assert soft - 1e-12 <= er1 <= er2 + 1e-12 and er2 <= hard + 1e-12
        assert label(outcomes, "entropy_regularised", -2.0) <= soft + 1e-12
    for eta in (1e4, -1e4):  # far beyond what exp can hold
        assert label([0, 1], "entropy_regularised", eta) == pytest.approx(1.0 if eta > 0 else 0.0, abs=1e-3)
    assert [label([y] * 5, "entropy_regularised", 2.0) for y in (0, 1)] == pytest.approx([0, 1])
    with pytest.raises(ValueError, match="no outcomes"):
        label([])


SOLVED = [
    {"prompt": "2+2=", "completion": "1+1=2\n2+2=4", "reference": "4"},
    {"prompt": "3+2=", "completion": "5", "reference": "6"},
    {"prompt": "3+3=", "completion": "\n", "reference": "6"},
]


def labels_of(tmp_path, tiny_folder, out, engine, **how):
    data = tmp_path / "solved.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in SOLVED))
    scorer = {"name": "math_answer", "protocol": "llmrl/last-number@1"}
    given = Labelling(num_completions=4, max_tokens=8, **{"scorer": scorer} | how)
    counts = write_labels(Model(path=tiny_folder), Data(source=str(data)), out, given, engine)
    return counts, [json.loads(line) for line in out.read_text().splitlines()]


def test_labels_come_from_completions_of_every_prefix_and_the_last_from_the_answer(tmp_path, tiny_folder):
    engine = {"name": "scripted", "answers": ["so 4", "so 5", "so 6", "and 4.0"]}  # two of four are right for 2+2
    counts, rows = labels_of(tmp_path, tiny_folder, tmp_path / "steps.jsonl", engine, eta=2.0)
    assert counts == {"labelled": 2, "before": 0, "left_out": 1}
    first, second = rows
    assert first["steps"] == ["1+1=2", "2+2=4"] and first["outcomes"] == [[1, 0, 0, 1]] and first["reference"] == "4"
    assert first["labels"] == [pytest.approx(0.716890, abs=1e-6), 1.0]
    assert second["steps"] == ["5"] and second["labels"] == [0.0] and second["outcomes"] == []


def test_labelling_goes_on_where_it_was_stopped_with_the_same_labels(tmp_path, tiny_folder, monkeypatch):
    engine = {"name": "transformers"}
    labels_of(tmp_path, tiny_folder, tmp_path / "whole.jsonl", engine, scorer="math_answer")
    whole = (tmp_path / "whole.jsonl").read_text()
    cut = tmp_path / "cut.jsonl"
    labels_of(tmp_path, tiny_folder, cut, engine, scorer="math_answer")
    cut.write_text(whole[: len(whole) - 20])  # killed while it wrote the last row
    counts, _ = labels_of(tmp_path, tiny_folder, cut, engine, scorer="math_answer")
    assert cut.read_text() == whole and counts["before"] == 1 and counts["labelled"] == 1
    with pytest.raises(DataError, match="was written with other settings: eta differ"):
        labels_of(tmp_path, tiny_folder, cut, engine, scorer="math_answer", eta=3.0)


def test_the_command(tmp_path, tiny_folder, capsys):
    data = tmp_path / "solved.jsonl"
    data.write_text(json.dumps({"prompt": "2+2=", "reference": "4"}) + "\n")
    words = [
        tiny_folder,
        str(data),
        str(tmp_path / "out.jsonl"),
        "max_tokens=4",
        "num_solutions=2",
        "num_completions=2",
    ]
    assert main(words) == 0 and "before" in capsys.readouterr().out
    assert main([*words, "etta=1"]) == 2 and "etta" in capsys.readouterr().err
    assert main([]) == 2
