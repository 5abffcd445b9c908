"""Whole runs on tiny models: which passes they make, what they leave behind, and what they do when scorers fail."""

from __future__ import annotations

import json
import math
import os
import socket

import pytest
import torch
from helpers import TINY, rollouts, rows, trained, varied, weights_of, write_recipe

from llmrl import run as building
from llmrl import train
from llmrl.errors import LlmrlError, RecipeError, ScoringError
from llmrl.policy.forward import base_model
from llmrl.recipe import RECIPES
from llmrl.training.places import Lock
from llmrl.types import Score

LORA = {"model": {"lora": {"rank": 4}}}
PAIRS = {"data": {"source": {"name": "addition_pairs", "size": 64}}, "rollout": {"engine": "replay"}}
DEMONSTRATIONS = {"data": {"source": {"name": "addition_demonstrations", "size": 64}}, "rollout": {"engine": "replay"}}
WRITTEN = {"rollout": {"engine": {"name": "scripted", "answers": ["1", "22", "333", "4444"]}}}  # no forward of its own


@pytest.fixture
def loaded(monkeypatch):
    """Every policy that a run loads, in order. `trunk` counts calls of its decoder, `first` holds its first weights."""
    policies, load = [], building.load_policy

    def counted(*arguments, **options):
        policy = load(*arguments, **options)
        policy.trunk = 0
        policy.first = {n: p.detach().clone() for n, p in policy.module.named_parameters()}

        def count(*_):
            policy.trunk += 1

        base_model(policy.model).get_decoder().register_forward_hook(count)
        policies.append(policy)
        return policy

    monkeypatch.setattr(building, "load_policy", counted)
    return policies


@pytest.mark.parametrize(
    ("algorithm", "sections", "passes", "critic"),
    [
        ({"name": "grpo"}, WRITTEN, [1], False),  # the current one; old_logprobs are its detached values
        ({"name": "grpo", "kl_coef": 0.04}, WRITTEN, [1, 1], False),  # current; reference
        ({"name": "grpo", "kl_coef": 0.04}, WRITTEN | LORA, [2], False),  # both on one model, adapters on and off
        ({"name": "grpo", "epochs": 2}, WRITTEN, [3], False),  # old, two updates
        ({"name": "ppo"}, WRITTEN, [5, 1], True),  # old, 2 epochs × 2 mini-batches; reference
        ({"name": "ppo", "kl_coef": 0.0}, WRITTEN, [5], True),
        ({"name": "dpo"}, PAIRS, [1, 1], False),
        ({"name": "sft"}, DEMONSTRATIONS, [1], False),
    ],
)
def test_a_step_makes_the_passes_that_its_parts_ask_for(tmp_path, loaded, algorithm, sections, passes, critic):
    training = {"steps": 2, "max_logprob_gap": 100.0}
    functions = () if sections in (PAIRS, DEMONSTRATIONS) else [varied]
    sections = sections | {"model": {"shared_prompt": "off"} | sections.get("model", {})}
    trained(tmp_path, functions=functions, algorithm=algorithm, training=training, **sections)
    assert [policy.passes for policy in loaded] == [2 * n for n in passes]
    assert [policy.trunk for policy in loaded] == [2 * n for n in passes]  # without sharing one call a pass
    assert (loaded[0].module.value_head is not None) == critic
    assert all(policy.module.value_head is None for policy in loaded[1:])


FEEDBACK = {"name": "scripted_feedback", "tags": False}
QUICK = {
    "model": TINY,
    "training": {"steps": 2},
    "tracking": {"rollouts_every": 1, "panel": "off"},
    **{f"evaluation.{n}.data.source.size": 8 for n in ("sampled", "greedy")},
    **{"stages.warm-up.training.steps": 2, "stages.warm-up.data.source.size": 64, "data.source.size": 64},
    **{"stages.grpo.training.steps": 2, "stages.grpo.scorers": ["answer_tag", "judges:varied"]},
}
OFFLINE = {
    "name": "offline",
    "algorithm": {"name": "fcp", "stage": "offline"},
    "rollout": {"engine": {"name": "scripted", "answers": [str(n) for n in range(10, 26)]}, "group_size": 16},
}
METHODS = {
    "grpo": {"algorithm": {"name": "grpo", "kl_coef": 0.04}, "scorers": ["answer_tag", "judges:varied"]},
    "lora": LORA | {"algorithm": {"name": "grpo"}, "scorers": ["answer_tag", "judges:varied"]},
    "ppo": {"algorithm": {"name": "ppo"}, "scorers": ["answer_tag", "judges:varied"]},
    "dpo": PAIRS | {"algorithm": {"name": "dpo"}},
    "fcp": {
        "scorers": [FEEDBACK],
        "training": {"max_logprob_gap": 100.0},
        "stages": [OFFLINE, {"name": "bootstrap", "algorithm": {"name": "fcp"}}],
    },
}
ALWAYS = ["gradient/norm", "learning_rate", "update/rows", "rollout/length", "rollout/truncated", "rollout/count"]
ALWAYS += ["rollout/dropped", "scorer/errors", "tokens/generated", "time/step", "tokens_per_second/update"]
SAMPLED = ["rollout/logprob_gap_mean", "rollout/logprob_gap_max", "rollout/logprob_gap_kl", "reward/mean", "reward/std"]
SAMPLED += ["rollout/no_spread", "policy/entropy"]


def finished(folder, method):
    """(Result, the policy as training left it)."""
    kept, load = [], building.load_policy
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "load_policy", lambda *a, **o: kept.append(load(*a, **o)) or kept[-1])
        if method == "quickstart":
            result = train(RECIPES / "quickstart.yaml", QUICK | {"out": str(folder)})
        else:
            result = trained(folder, **METHODS[method])
    return result, kept[0]


@pytest.fixture(scope="module", params=["quickstart", *METHODS])
def twice(request, tmp_path_factory):
    """The same recipe run two times: [(Result, policy), (Result, policy)], and the method's name."""
    return [finished(tmp_path_factory.mktemp(f"{request.param}{i}"), request.param) for i in (1, 2)], request.param


def test_a_run_leaves_metrics_rollouts_and_a_report(twice):
    (result, _), method = twice[0][0], twice[1]
    every = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in every if "gradient/norm" in row]
    assert [row["global_step"] for row in steps] == list(range(1, len(steps) + 1)) and len(steps) >= 3
    for row in steps:
        sampled = method != "dpo" and row["stage"] not in ("warm-up", "offline")
        wanted = [*ALWAYS, *(SAMPLED if sampled else []), *(["loss/total"] if row["update/rows"] else [])]
        assert not [name for name in wanted if not math.isfinite(row[name])]
        assert not sampled or row["rollout/logprob_gap_max"] < 1e-4
    assert not any("metrics/not_finite" in row for row in every)
    assert all(
        any(row["update/rows"] > 0 for row in steps if row["stage"] == s) for s in {row["stage"] for row in steps}
    )
    for row in steps:
        kept = rollouts(result.folder, row["global_step"])
        assert len(kept) == row["rollout/count"]
        if row["rollout/dropped"] < row["rollout/count"] and "reward/mean" in row:
            rewards = [record["reward"] for record in kept if record["kept"]]
            assert sum(rewards) / len(rewards) == pytest.approx(row["reward/mean"])
            assert all(one["value"] is not None for record in kept for one in record["scores"].values())
            assert any(one["evidence"] for record in kept for one in record["scores"].values())
    assert result.report.name == "report.html" and "<svg" in result.report.read_text()


def test_the_export_loads_without_llmrl_and_gives_the_same_logits(twice):
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (result, policy), method = twice[0][0], twice[1]
    loader = AutoPeftModelForCausalLM if method == "lora" else AutoModelForCausalLM
    model = loader.from_pretrained(result.folder / "final", dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(result.folder / "final")("7+12=", return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, policy.model(ids).logits, rtol=1e-5, atol=1e-5)
        made = AutoModelForCausalLM.from_pretrained(result.folder / "made", dtype=torch.float32).eval()
        assert not torch.allclose(model(ids).logits, made(ids).logits, atol=1e-3)  # it has learnt something


def test_the_same_seed_gives_the_same_run_to_the_bit(twice):
    (first, _), (second, _) = twice[0]
    assert rows(first.folder) == rows(second.folder)
    assert weights_of(first.folder) == weights_of(second.folder)
    files = sorted((first.folder / "rollouts").iterdir())
    assert files and all(f.read_bytes() == (second.folder / "rollouts" / f.name).read_bytes() for f in files)


def test_another_seed_gives_another_run(tmp_path):
    grpo = {"algorithm": {"name": "grpo"}}
    first, second = (trained(tmp_path, f"s{s}", functions=[varied], seed=s, **grpo) for s in (1, 2))
    assert rows(first.folder) != rows(second.folder)


def test_the_ratio_is_one_at_the_first_update_and_moves_after_it(tmp_path):
    once = trained(tmp_path, "once", functions=[varied], algorithm={"name": "ppo", "epochs": 1, "minibatches": 1})
    for row in rows(once.folder):  # old_logprobs come from a pass of their own here
        assert row["kl/old"] < 1e-12 and row["ratio/clip_fraction"] == 0.0
    training = {"learning_rate": 0.01}
    often = trained(tmp_path, "often", functions=[varied], algorithm={"name": "ppo", "epochs": 4}, training=training)
    assert all(row["kl/old"] > 1e-4 for row in rows(often.folder))


def test_training_leaves_the_reference_alone(tmp_path, loaded):
    trained(tmp_path, functions=[varied], algorithm={"name": "grpo", "kl_coef": 0.1})
    policy, reference = loaded
    assert all(torch.equal(p, reference.first[n]) for n, p in reference.module.named_parameters())
    assert all(torch.equal(policy.first[n], reference.first[n]) for n in policy.first)
    moved = [not torch.equal(p, policy.first[n]) for n, p in policy.module.named_parameters()]
    assert all(moved)


def test_with_adapters_only_the_adapters_train(tmp_path, loaded):
    trained(tmp_path, functions=[varied], algorithm={"name": "grpo"}, **LORA)
    (policy,) = loaded
    for name, parameter in policy.module.named_parameters():
        if "lora_B" in name:
            assert not torch.equal(parameter, policy.first[name]), name
        elif "lora_" not in name:
            assert torch.equal(parameter, policy.first[name]), name


def constant(completions, **columns):
    return [1.0] * len(completions)


def test_groups_without_spread_teach_nothing_and_are_still_watched(tmp_path, loaded):
    result = trained(tmp_path, functions=[constant], algorithm={"name": "grpo"})
    for row in rows(result.folder):
        assert (row["update/rows"], row["gradient/norm"], row["rollout/no_spread"]) == (0.0, 0.0, 1.0)
        assert row["rollout/logprob_gap_max"] < 1e-4
    (policy,) = loaded
    assert all(torch.equal(p, policy.first[n]) for n, p in policy.module.named_parameters())


def faulty(prompt, rollout) -> Score:
    """By the first token: raises, answers NaN, does not apply, or a value."""
    case = rollout.ids[0] % 5
    if case == 0:
        raise ValueError("boom")
    return Score([math.nan, None, float(rollout.ids[0]), 1.0][case - 1], evidence={"case": case})


def test_rollouts_that_cannot_be_judged_are_dropped_and_counted(tmp_path):
    rollout, scoring = {"prompts_per_step": 6, "group_size": 6}, {"max_error_share": 1.0}
    result = trained(tmp_path, functions=[faulty], algorithm={"name": "grpo"}, rollout=rollout, scoring=scoring)
    for row in rows(result.folder):
        records = rollouts(result.folder, row["global_step"])
        case = [record["ids"][0] % 5 for record in records]
        assert {0, 1, 2, 3} <= set(case)  # every kind of failure is there
        assert [record["kept"] for record in records] == [c > 2 for c in case]
        assert row["rollout/dropped"] == sum(c <= 2 for c in case) and row["scorer/errors"] == sum(c < 2 for c in case)
        values = [record["reward"] for record in records if record["kept"]]
        assert row["reward/mean"] == pytest.approx(sum(values) / len(values))
        for group in range(6):
            kept = [record for record in records if record["group"] == group and record["kept"]]
            mean = sum(r["reward"] for r in kept) / max(len(kept), 1)
            spread = math.sqrt(sum((r["reward"] - mean) ** 2 for r in kept) / max(len(kept) - 1, 1))
            for record in kept:
                expected = (record["reward"] - mean) / (spread + 1e-4) if spread else 0.0
                assert record["advantage"] == pytest.approx(expected, rel=1e-3, abs=1e-6)


def broken(prompt, rollout) -> Score:
    raise RuntimeError("the judge is down")


def test_a_scorer_that_always_fails_stops_the_run_with_its_reason(tmp_path):
    with pytest.raises(ScoringError, match="16 of 16 rollouts could not be scored.*broken: RuntimeError: the judge is"):
        trained(tmp_path, functions=[broken], algorithm={"name": "grpo"})


@pytest.mark.parametrize(
    "sections",
    [
        {"algorithm": {"name": "grpo", "kl_coef": 0.1}},
        {"algorithm": {"name": "ppo"}},
        {"algorithm": {"name": "fcp", "stage": "offline"}},
    ],
)
def test_a_step_without_any_row_changes_nothing(tmp_path, loaded, sections):
    result = trained(tmp_path, functions=[broken], scoring={"max_error_share": 1.0}, **sections)
    for row in rows(result.folder):
        assert (row["rollout/dropped"], row["scorer/errors"], row["gradient/norm"]) == (16.0, 16.0, 0.0)
    assert all(torch.equal(p, loaded[0].first[n]) for n, p in loaded[0].module.named_parameters())


def reward_len(prompts, completions, reference, **kwargs):
    """As TRL documents a reward function: message lists in, one number each out, columns by name."""
    with open(os.environ["CALLS"], "a") as log:
        log.write(json.dumps([prompts, completions, reference, sorted(kwargs)]) + "\n")
    return [float(len(completion[0]["content"])) for completion in completions]


async def reward_len_later(prompts, completions, reference, **kwargs):
    return reward_len(prompts, completions, reference, **kwargs)


@pytest.mark.parametrize("function", [reward_len, reward_len_later])
def test_a_reward_function_written_for_trl_runs_unchanged(tmp_path, monkeypatch, function):
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    result = train(write_recipe(tmp_path, algorithm={"name": "grpo"}), scorers=[function])
    calls = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    assert len(calls) == 3
    for step, (prompts, completions, reference, _) in enumerate(calls, 1):
        kept = rollouts(result.folder, step)
        assert [p[-1] for p in prompts] == [{"role": "user", "content": record["prompt"]} for record in kept]
        assert completions == [[{"role": "assistant", "content": record["text"]}] for record in kept]
        assert [eval_sum(record["prompt"]) for record in kept] == [int(r) for r in reference]
        assert [record["reward"] for record in kept] == [float(len(record["text"])) for record in kept]
    assert f"reward/{function.__name__}" in result.metrics


def eval_sum(text: str) -> int:
    return sum(map(int, text.removesuffix("=").split("+")))


MODULE = """
def short(prompts, completions, **kwargs):
    return [-float(len(c[0]["content"])) for c in completions]
"""


def test_a_recipe_names_a_function_of_a_module_beside_it(tmp_path, monkeypatch):
    (tmp_path / "own_rewards.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    result = trained(tmp_path, algorithm={"name": "grpo"}, scorers=["own_rewards:short"])
    for step in (1, 2, 3):
        assert all(record["reward"] == -len(record["text"]) for record in rollouts(result.folder, step))


def test_a_stage_that_trains_on_rewards_needs_scorers(tmp_path):
    with pytest.raises(RecipeError, match="no scorers"):
        trained(tmp_path, algorithm={"name": "grpo"})


def test_rejected_answers_are_never_trained_on_as_demonstrations(tmp_path):
    with pytest.raises(RecipeError, match="rejected answers"):
        trained(tmp_path, algorithm={"name": "sft"}, **PAIRS)


def test_two_runs_do_not_share_a_folder(tmp_path):
    held = Lock(tmp_path)
    with pytest.raises(LlmrlError, match=f"in use by process {os.getpid()} on {socket.gethostname()}"):
        Lock(tmp_path)
    held.close()
    Lock(tmp_path).close()
