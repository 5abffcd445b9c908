"""Whole runs: a reward model learns an order, a process reward model its labels; margins, equal pairs and cuts on the way."""

import json
import random

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from llmrl import train
from llmrl.errors import DataError
from llmrl.types import Group, Prompt, Rollout
from reward_models.process_reward import process_reward
from reward_models.reward_model import classifier, reward_model

TINY = {"make": {"name": "tiny", "hidden": 32, "layers": 1, "heads": 2, "kv_heads": 1, "feed_forward": 32}}


def run(folder, rows, test, **sections):
    """(metrics, export) of a run on these rows, with `test` held out."""
    torch.set_num_threads(1)
    paths = {}
    for name, some in (("train", rows), ("test", test)):
        paths[name] = folder / f"{name}.jsonl"
        paths[name].write_text("".join(json.dumps(row) + "\n" for row in some))
    recipe = {
        "model": TINY,
        "out": str(folder / "runs"),
        "data": {"source": str(paths["train"])},
        "rollout": {"engine": "replay", "prompts_per_step": 32, "max_tokens": 16},
        "training": {"steps": 40, "learning_rate": 1e-2},
        "evaluation": {"held_out": {"data": {"source": str(paths["test"])}}},
        "tracking": {"panel": "off", "rollouts_every": 0},
    } | sections
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    result = train(path)
    return result.metrics, result.folder / "final"


def ordered_pairs(count, seed=0):
    """Words of four letters; the one with more a's is chosen."""
    rng, found = random.Random(seed), []
    while len(found) < count:
        one, other = ("".join(rng.choices("ab", k=4)) for _ in range(2))
        if one.count("a") > other.count("a"):
            found.append({"prompt": "Say:", "chosen": one, "rejected": other})
    return found


@pytest.mark.parametrize("lora", [None, {"rank": 4}], ids=["whole", "adapters"])
def test_an_order_is_learned_exported_and_served(tmp_path, lora):
    model = TINY | ({"lora": lora} if lora else {})
    metrics, folder = run(
        tmp_path,
        ordered_pairs(400),
        ordered_pairs(60, seed=1),
        model=model,
        algorithm={"name": "bradley_terry"},
        training={"steps": 60, "learning_rate": 2e-2},
    )
    assert metrics["eval/held_out/accuracy"] >= 0.95 and metrics["eval/held_out/margin"] > 1
    assert "rollout/logprob_gap_mean" not in metrics and "kl/old" not in metrics  # nothing was sampled, no logits made
    path = str(folder / "merged" if lora else folder)
    assert AutoModelForSequenceClassification.from_pretrained(path, num_labels=1).score.weight.abs().max() > 0
    classifier.cache_clear()
    words = ["bbbb", "abbb", "abab", "aaba", "aaaa"]
    found = reward_model([Group(Prompt("p", text="Say:"), tuple(Rollout((0,), word) for word in words))], path=path)[0]
    values = [one.value for one in found]
    assert values == sorted(values) and values[-1] - values[0] > 1


def test_the_first_loss_is_ln_2_and_a_margin_raises_it(tmp_path):
    one_step = {"steps": 1, "learning_rate": 1e-9}
    for margin, expected in ((0.0, 0.693147), (1.0, 1.313262)):  # -log sigmoid(-1)
        folder = tmp_path / str(margin)
        folder.mkdir()
        pairs = [pair | {"margin": margin} for pair in ordered_pairs(40)]
        metrics, _ = run(folder, pairs, pairs[:8], algorithm={"name": "bradley_terry"}, training=one_step)
        assert metrics["loss/bradley_terry"] == pytest.approx(expected, abs=1e-5)


def test_equal_answers_are_counted_as_refused(tmp_path):
    pairs = ordered_pairs(40)
    test = [*pairs[:9], {"prompt": "Say:", "chosen": "aa", "rejected": "aa"}]
    metrics, _ = run(tmp_path, pairs, test, algorithm={"name": "bradley_terry"}, training={"steps": 1})
    assert metrics["eval/held_out/refused"] == 1


def labelled(count, seed=0):
    """Three letters a solution, each a step of its own; a step is right when it is an a."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("ab", k=3)) for _ in range(count)]
    return [{"prompt": "Say:", "steps": list(word), "labels": [float(c == "a") for c in word]} for word in words]


@pytest.mark.parametrize("verdicts", [["+", "-"], []], ids=["verdict tokens", "head"])
def test_step_labels_are_learned_exported_and_served(tmp_path, verdicts):
    metrics, folder = run(
        tmp_path,
        labelled(300),
        labelled(40, seed=1),
        model=TINY | {"verdict_tokens": verdicts},
        algorithm={"name": "process_reward"},
    )
    assert metrics["eval/held_out/accuracy"] > 0.97 and metrics["eval/held_out/error"] < 0.1
    assert AutoModelForCausalLM.from_pretrained(folder).config.vocab_size == 128
    group = Group(Prompt("p", text="Say:"), (Rollout((0,), "a\nb\na"), Rollout((0,), "a\na")))
    wrong, right = process_reward([group], path=str(folder), verdict_tokens=verdicts or None)[0]
    assert [number > 0.5 for _, number in wrong.steps] == [True, False, True]
    assert wrong.value < 0.2 < 0.8 < right.value


def test_step_labels_that_are_not_there_stop_the_run(tmp_path):
    rows = [{"prompt": "Say:", "completion": "a"}] * 4
    with pytest.raises(DataError, match="trains on step labels, and an answer has none"):
        run(tmp_path, rows, rows, algorithm={"name": "process_reward"})


def test_process_rewards_of_a_scorer_train_a_policy(tmp_path):
    def letters(prompt, rollout):
        from llmrl.types import Score

        found = tuple((i + 1, float(c == "a")) for i, c in enumerate(rollout.text))
        return Score(0.0, steps=found)

    path = tmp_path / "recipe.yaml"
    recipe = {
        "model": TINY,
        "out": str(tmp_path / "runs"),
        "data": {"source": {"name": "addition", "size": 8}},
        "algorithm": {
            "name": "ppo",
            "kl_coef": 0.0,
            "combine": ["weighted_sum", {"name": "process_rewards", "step_coef": 2.0}],
            "advantage": {"gae_lambda": 0.0},
            "epochs": 1,
            "minibatches": 1,
        },
        "rollout": {"prompts_per_step": 8, "group_size": 8, "max_tokens": 6},
        "training": {"steps": 15, "learning_rate": 2e-2},
        "tracking": {"panel": "off"},
    }
    path.write_text(yaml.safe_dump(recipe))
    result = train(path, scorers=[letters])
    share = []
    for step in (1, 15):
        rows = (result.folder / "rollouts" / f"step_{step:06d}.jsonl").read_text().splitlines()
        texts = "".join(json.loads(row)["text"] for row in rows)
        share.append(texts.count("a") / max(len(texts), 1))
    assert share[1] > share[0] + 0.1  # credit reached the very token that earned it
