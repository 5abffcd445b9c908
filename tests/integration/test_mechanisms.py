"""What a method may ask of the loop beside its loss, seen from outside in small whole runs: more prompts, greedy answers,
reference rollouts, second batches, a look at the whole mini-batch, noise, other update rules.
"""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace

import pytest
import torch
from helpers import interrupted, rollouts, rows, trained, weights_of
from judges import kind_of
from safetensors.torch import load_file
from torch.testing import assert_close

from llmrl import references
from llmrl.data.tasks import addition_demonstrations
from llmrl.errors import CheckpointError, DataError, RecipeError
from llmrl.rollout.transformers import TransformersEngine
from llmrl.training.update import Problem, Updater

ADDITION = {"source": {"name": "addition", "size": 48}}
ANSWERED = {"source": {"name": "addition_demonstrations", "size": 48}}


class Step:
    """One update as it went: what it was given, the policy before and after it, and the gradients of its steps."""

    def __init__(self, batch, extras, policy):
        self.batch, self.extras, self.tokenizer = batch, extras, policy.tokenizer
        self.before, self.after, self.told, self.gradients = copy.deepcopy(policy.model), None, {}, []

    def said(self, ids):
        return self.tokenizer.decode(ids, skip_special_tokens=True)


@pytest.fixture
def steps(monkeypatch):
    """Every update from now on."""
    seen: list[Step] = []
    update, step = Updater.update, Problem.step

    def updated(updater, batch, algorithm, *, extras=(), **rest):
        seen.append(Step(batch, extras, updater.policy))
        seen[-1].told = update(updater, batch, algorithm, extras=extras, **rest)
        seen[-1].after = copy.deepcopy(updater.policy.model)
        return seen[-1].told

    def stepped(problem):
        named = problem.updater.policy.trainable()
        seen[-1].gradients.append({n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in named})
        return step(problem)

    monkeypatch.setattr(Updater, "update", updated)
    monkeypatch.setattr(Problem, "step", stepped)
    return seen


@pytest.fixture
def asked(monkeypatch):
    """(number of prompts, samples of each, temperature) of every call of the engine."""
    seen, generate = [], TransformersEngine.generate

    def counted(engine, prompts, sampling, num_samples, *given):
        seen.append((len(prompts), num_samples, sampling.temperature))
        return generate(engine, prompts, sampling, num_samples, *given)

    monkeypatch.setattr(TransformersEngine, "generate", counted)
    return seen


def distributions(model, sample):
    """[T,V] log-probabilities under which each token of a row's answer was drawn, by the plain model."""
    ids = torch.tensor([[*sample.training, *sample.response]])
    logits = model(input_ids=ids).logits[0, len(sample.training) - 1 : -1]
    return logits.float().log_softmax(-1)


def log_likelihoods(model, sample):
    """[T] of the answer's tokens."""
    return distributions(model, sample).gather(1, torch.tensor(sample.response)[:, None]).squeeze(1)


def gradient_of(step, loss):
    """The gradient of loss(model) by parameter, at the weights before the update."""
    model = copy.deepcopy(step.before)
    model.zero_grad()
    loss(model).backward()
    return {f"model.{n}": p.grad for n, p in model.named_parameters() if p.grad is not None}


def divergences(step):
    """KL(before || after) over the vocabulary of every counted token of the step's batch."""
    found = []
    with torch.no_grad():
        for sample, mask in zip(step.batch.samples, step.batch.arrays["loss_mask"], strict=True):
            old, new = (distributions(model, sample) for model in (step.before, step.after))
            found.append((old.exp() * (old - new)).sum(-1)[mask[: len(sample.response)]])
    return torch.cat(found)


# Dynamic sampling


def test_a_step_is_filled_up_with_groups_that_teach(tmp_path, steps, asked):
    sections = {"scorers": ["judges:by_prompt"], "data": ADDITION, "training": {"steps": 6}}
    run = trained(tmp_path, algorithm={"name": "dapo"}, **sections)
    metrics, surplus = rows(run.folder), 0
    assert max(asked.count(one) for one in asked) == len(asked) > 6  # some step has asked again
    for number, (step, row) in enumerate(zip(steps, metrics, strict=True), 1):
        groups, rewards = step.batch.arrays["group_ids"], step.batch.arrays["rewards"]
        assert len(groups.unique()) == 4 and len(groups) == 16
        assert all(rewards[groups == g].unique().numel() == 2 for g in groups.unique())
        written = rollouts(run.folder, number)
        values = [r["scores"]["by_prompt"]["value"] for r in written]
        surplus += sum(len({*values[i : i + 4]}) > 1 for i in range(0, len(values), 4)) - 4
        kept = [r for r in written if r["kept"]]
        assert len(written) == row["rollout/count"] and len(written) - len(kept) == row["rollout/dropped"]
        assert len(kept) == 16 and {kind_of(r["messages"]) for r in kept} == {2}
        assert sorted(r["reward"] for r in kept) == sorted(rewards.tolist())
        assert sum(r["reward"] for r in kept) / 16 == pytest.approx(row["reward/mean"])
    assert surplus > 0 and sum(row["rollout/count"] for row in metrics) == 16 * len(asked)
    prompts = [r["prompt_id"] for n in range(1, 7) for r in rollouts(run.folder, n)[::4]]
    assert len(set(prompts[:48])) == min(len(prompts), 48)  # one prompt after the other, in every attempt


def test_filling_up_ends_at_the_cap_and_an_empty_step_changes_nothing(tmp_path, steps, asked):
    algorithm = {"name": "dapo", "max_batches": 3}
    run = trained(tmp_path, algorithm=algorithm, scorers=["judges:flat"], training={"steps": 2})
    assert asked == [(4, 4, 1.0)] * 6
    for row, step in zip(rows(run.folder), steps, strict=True):
        assert row["rollout/count"] == row["rollout/dropped"] == 48 and row["update/rows"] == 0
        assert all(torch.equal(a, b) for a, b in zip(step.before.parameters(), step.after.parameters(), strict=True))


# Greedy answers


def test_a_greedy_answer_is_the_baseline_and_nothing_else(tmp_path, steps, asked):
    algorithm = {"name": "remax", "kl_coef": 0.0}
    run = trained(tmp_path, algorithm=algorithm, scorers=["judges:varied"], rollout={"group_size": 2})
    assert asked == [(4, 1, 0.0), (4, 2, 1.0)] * 3
    for number, (step, row) in enumerate(zip(steps, rows(run.folder), strict=True), 1):
        written = rollouts(run.folder, number)
        groups = [written[i : i + 3] for i in range(0, 12, 3)]
        assert [[r["kept"] for r in group] for group in groups] == [[True, True, False]] * 4
        baselines = [group[2]["scores"]["varied"]["value"] for group in groups for _ in range(2)]
        rewards = [r["reward"] for group in groups for r in group[:2]]
        assert step.batch.arrays["greedy_rewards"].tolist() == baselines
        credit = [r["advantage"] for group in groups for r in group[:2]]
        assert credit == pytest.approx([r - b for r, b in zip(rewards, baselines, strict=True)])
        assert [s.response for s in step.batch.samples] == [tuple(r["ids"]) for g in groups for r in g[:2]]
        sampled = [r for group in groups for r in group[:2]]
        assert row["rollout/count"] == 8 and row["rollout/dropped"] == 0
        assert row["reward/mean"] == row["reward/varied"] == pytest.approx(sum(rewards) / 8)
        assert row["rollout/length"] == pytest.approx(sum(len(r["ids"]) for r in sampled) / 8)
        with torch.no_grad():
            for group in groups:
                ids = group[2]["ids"]
                sample = next(s for s in step.batch.samples if s.response == tuple(group[0]["ids"]))
                likely = distributions(step.before, replace(sample, response=tuple(ids))).argmax(-1)
                assert likely.tolist() == ids


def test_without_a_verdict_on_the_greedy_answer_the_prompt_is_left_out(tmp_path, steps):
    algorithm = {"name": "remax", "kl_coef": 0.0}
    sections = {"scorers": ["judges:unsure"], "rollout": {"group_size": 3}, "training": {"steps": 4}}
    run = trained(tmp_path, algorithm=algorithm, **sections)
    left_out = 0
    for number, step in enumerate(steps, 1):
        written = rollouts(run.folder, number)
        kept = []
        for group in (written[i : i + 4] for i in range(0, 16, 4)):
            *judged, greedy = [r["scores"]["unsure"]["value"] is not None for r in group]
            kept += [greedy and one for one in judged] + [False]
            left_out += not greedy
        assert [r["kept"] for r in written] == kept and sum(kept) == len(step.batch)
    assert 0 < left_out < 16


# Rollouts ahead of training

PVPO = {
    "algorithm": {"name": "pvpo", "num_samples": 4, "refresh_every": 0},
    "scorers": ["judges:by_prompt"],
    "data": ADDITION,
    "training": {"steps": 5, "save_every": 2},
}


def reference_files(folder):
    return {path.name: path.read_bytes() for path in folder.glob("reference-*")}


def test_reference_rollouts_are_made_once_for_every_prompt(tmp_path, asked, steps):
    run = trained(tmp_path, **PVPO)
    assert sum(n for n, samples, _ in asked[:12]) == 48 and all(samples == 4 for _, samples, _ in asked[:12])
    files = reference_files(run.folder)
    assert list(files) == ["reference-pvpo-0.jsonl"]
    records = {r["id"]: r for r in map(json.loads, files["reference-pvpo-0.jsonl"].splitlines())}
    assert len(records) == 48 and len(asked) == 12 + 5
    dealt = {r["prompt_id"] for n in range(1, 6) for r in rollouts(run.folder, n)}
    assert dealt <= {i for i, r in records.items() if 0 < r["anchor"] < 1}
    for number, step in enumerate(steps, 1):
        written = rollouts(run.folder, number)
        assert {kind_of(r["messages"]) for r in written} == {2}
        expected = [records[r["prompt_id"]]["anchor"] for r in written]
        assert step.batch.arrays["anchor_rewards"].tolist() == pytest.approx(expected)
        credit = [r["reward"] - anchor for r, anchor in zip(written, expected, strict=True)]
        assert step.batch.arrays["advantages"][:, 0].tolist() == pytest.approx(credit, abs=1e-6)
    held = next(r for r in records.values() if r["ids"] is not None)
    assert len(held["logprobs"]) == len(held["ids"])


def test_the_answers_of_unsolved_prompts_are_learnt_beside_the_rollouts(tmp_path, steps):
    algorithm = PVPO["algorithm"] | {"answer_coef": 0.25}
    sections = {"data": ANSWERED, "scorers": ["judges:by_prompt"], "training": {"steps": 1, "max_grad_norm": 1e9}}
    run = trained(tmp_path, "answered", algorithm=algorithm, rollout={"prompts_per_step": 12}, **sections)
    trained(tmp_path, "alone", algorithm=algorithm | {"extra": []}, rollout={"prompts_per_step": 12}, **sections)
    step, alone = steps
    assert {kind_of(r["messages"]) for r in rollouts(run.folder, 1)} == {1, 2}  # kind 0 is always solved
    ((_, beside),) = step.extras
    first, groups = step.batch.arrays["anchor_rewards"].tolist(), step.batch.arrays["group_ids"].tolist()
    unsolved = {g for g, anchor in zip(groups, first, strict=True) if anchor == 0}
    shown = [s for s, g in zip(beside.samples, beside.arrays["group_ids"].tolist(), strict=True) if g in unsolved]
    assert 0 < len(shown) < len(beside) == 12
    # the credit is 1 as V is 0; a mean over prompts, each answer's tokens averaged
    expected = gradient_of(step, lambda model: -0.25 * sum(log_likelihoods(model, s).mean() for s in shown) / 12)
    for name, found in step.gradients[0].items():
        assert_close(found, alone.gradients[0][name] + expected[name], rtol=1e-4, atol=1e-6)


def test_a_resumed_run_reads_the_reference_rollouts(tmp_path, asked):
    whole = trained(tmp_path, "whole", **PVPO)
    interrupted(tmp_path, 3, "killed", **PVPO)
    kept = reference_files(tmp_path / "runs" / "killed")
    asked.clear()
    resumed = trained(tmp_path, "killed", **PVPO)
    # steps 4 and 5, nothing ahead of them; step 3 trains on what had been sampled when the run was killed
    assert len(asked) == 2 and reference_files(resumed.folder) == kept
    assert weights_of(resumed.folder) == weights_of(whole.folder) and rows(resumed.folder) == rows(whole.folder)


def test_without_its_reference_rollouts_a_run_does_not_go_on(tmp_path):
    interrupted(tmp_path, 3, "killed", **PVPO)
    (tmp_path / "runs" / "killed" / "reference-pvpo-0.jsonl").unlink()
    with pytest.raises(CheckpointError, match=r"reference-pvpo-0\.jsonl is missing.*Start a new run"):
        trained(tmp_path, "killed", **PVPO)


def test_reference_rollouts_are_made_anew_by_the_policy_of_the_time(tmp_path):
    often = PVPO | {"algorithm": {"name": "pvpo", "num_samples": 4, "refresh_every": 2}}
    whole = trained(tmp_path, "whole", **often)
    files = reference_files(whole.folder)
    assert sorted(files) == [f"reference-pvpo-{n}.jsonl" for n in (0, 2, 4)] and len(set(files.values())) == 3
    for done in (3, 4):  # in the middle of what was made at step 2; and just before step 4
        interrupted(tmp_path, done, f"killed-{done}", **often)
        resumed = trained(tmp_path, f"killed-{done}", **often)
        assert reference_files(resumed.folder) == files
        assert weights_of(resumed.folder) == weights_of(whole.folder) and rows(resumed.folder) == rows(whole.folder)


def test_a_run_killed_while_it_looks_ahead_begins_that_again(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    interrupted(tmp_path, 2, "killed", **PVPO)
    folder = tmp_path / "runs" / "killed"
    kept = reference_files(folder)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(references, "records", killed)
        trained(tmp_path, "anew", **PVPO)
    assert not reference_files(tmp_path / "runs" / "anew")
    run = trained(tmp_path, "anew", **PVPO)
    assert reference_files(run.folder) == kept


@pytest.mark.parametrize(
    ("scorers", "found"),
    [("judges:moody", "prompts have no judged rollout"), ("judges:flat", "leave none of 48 prompts to sample from")],
)
def test_prompts_that_cannot_be_dealt_are_an_error(tmp_path, scorers, found):
    sections = PVPO | {"scorers": [scorers], "scoring": {"max_error_share": 1.0}}
    with pytest.raises(DataError, match=found):
        trained(tmp_path, **sections)


DPH = {
    "algorithm": {"name": "dph_rl", "num_samples": 4, "eta": 0.5},
    "scorers": ["judges:by_prompt"],
    "data": ADDITION,
}


def test_mastered_prompts_are_held_by_the_first_policys_answers(tmp_path, steps):
    run = trained(tmp_path, **DPH)
    lines = (run.folder / "reference-dph_rl-0.jsonl").read_text().splitlines()
    records = {tuple(r["ids"]): r for r in map(json.loads, lines) if r["ids"] is not None}
    for number, step in enumerate(steps, 1):
        assert {kind_of(r["messages"]) for r in rollouts(run.folder, number)} <= {1, 2}
        ((extra, beside),) = step.extras
        assert extra.source == "reference" and len(beside) == 4
        for row, sample in enumerate(beside.samples):
            record = records[sample.response]
            assert record["anchor"] == 1.0
            found = beside.arrays["ref_logprobs"][row, : len(sample.response)]
            with torch.no_grad():
                assert_close(found, torch.tensor(record["logprobs"]))
                if number == 1:  # then the policy is the one that wrote them
                    assert_close(found, log_likelihoods(step.before, sample), rtol=0, atol=1e-5)


# Second batches


def mean_likelihood(beside):
    """The loss of plain likelihood on these rows, a mean over tokens."""
    total = sum(len(sample.response) for sample in beside.samples)
    return lambda model: -sum(log_likelihoods(model, s).sum() for s in beside.samples) / total


BESIDE = {
    "extra_data": {"algorithm": {"name": "grpo"}, "extra_data": ANSWERED, "data": ADDITION},
    "stored": {"algorithm": {"name": "grpo"}, "data": ANSWERED},
    "reference": DPH,
}


@pytest.mark.parametrize("source", BESIDE)
def test_a_second_batch_adds_its_gradient_and_no_more(tmp_path, steps, source):
    sections = {"scorers": ["judges:varied"]} | BESIDE[source]
    sections["training"] = {"steps": 2, "max_grad_norm": 1e9, "tokens_per_micro_batch": 64}

    def run(name, *extra):
        steps.clear()
        return trained(tmp_path, name, **sections | {"algorithm": sections["algorithm"] | {"extra": [*extra]}})

    likelihood = {"objective": "likelihood", "source": source}
    alone = weights_of(run("alone").folder)
    plain = steps[0]
    assert weights_of(run("naught", likelihood | {"coefficient": 0.0}).folder) == alone
    assert weights_of(run("both", likelihood | {"coefficient": 0.5}).folder) != alone
    step = steps[0]
    assert [s.response for s in step.batch.samples] == [s.response for s in plain.batch.samples]
    ((_, beside),) = step.extras
    assert len({s.training for s in beside.samples}) == 4
    if source != "reference":
        for sample in beside.samples:
            assert step.said(sample.response) == str(sum(map(int, re.findall(r"\d+", step.said(sample.training)))))
    assert (source == "stored") == ({s.training for s in beside.samples} <= {s.training for s in step.batch.samples})
    loss = mean_likelihood(beside)
    expected = gradient_of(step, loss)
    for name, found in step.gradients[0].items():
        assert_close(found, plain.gradients[0][name] + 0.5 * expected[name], rtol=1e-4, atol=1e-6)
    assert step.told["loss/extra_likelihood"] == pytest.approx(float(loss(step.before).detach()), rel=1e-5)


def test_the_gate_opens_where_all_rollouts_fail(tmp_path, steps):
    answered = addition_demonstrations(size=24)
    for row in answered[::3]:
        row["completion"] = None
    source = tmp_path / "some.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in answered))
    sections = {"data": {"source": str(source)}, "scorers": ["judges:by_prompt"], "rollout": {"prompts_per_step": 8}}
    sections["training"] = {"steps": 1, "max_grad_norm": 1e9}
    trained(tmp_path, "plain", algorithm={"name": "ahpo", "extra": []}, **sections)
    run = trained(tmp_path, "gated", algorithm={"name": "ahpo"}, **sections)
    plain, step = steps
    written = rollouts(run.folder, 1)
    solved = {r["group"] for r in written if r["reward"] >= 0.5}
    ((_, beside),) = step.extras
    groups = beside.arrays["group_ids"].tolist()
    assert len(groups) < 8 and 0 < len(solved) < 8
    gates = [float(g not in solved) for g in groups]
    assert 0 < sum(gates) < len(gates)
    mask = beside.arrays["loss_mask"]
    assert torch.equal(beside.arrays["advantages"], torch.tensor(gates)[:, None] * mask)
    expert = [s for s, gate in zip(beside.samples, gates, strict=True) if gate]
    # over all eight prompts, with an answer or without, as the objective is a mean over prompts
    expected = gradient_of(step, lambda model: -sum(log_likelihoods(model, s).mean() for s in expert) / 8)
    for name, found in step.gradients[0].items():
        assert_close(found, plain.gradients[0][name] + expected[name], rtol=1e-4, atol=1e-6)


# A look at the whole mini-batch

PREPARED = {
    "clip_cov": {"name": "clip_cov", "fraction": 0.2, "covariance_low": 0.05, "covariance_high": 100.0},
    "kl_cov": {"name": "kl_cov", "fraction": 0.2},
    "m2po": {"name": "m2po", "threshold": 1e-5},
}


@pytest.mark.parametrize("name", PREPARED)
def test_what_is_prepared_does_not_depend_on_micro_batches(tmp_path, name, monkeypatch):
    seen, prepare = [], Problem._prepare

    def prepared(problem, mini):
        prepare(problem, mini)
        arrays = mini.batch.arrays
        chosen = arrays["penalised"] if name == "kl_cov" else arrays["weights"] == 0
        seen.append((chosen & arrays["loss_mask"]).clone())

    monkeypatch.setattr(Problem, "_prepare", prepared)
    algorithm = PREPARED[name] | {"epochs": 2, "minibatches": 2}
    found = []
    for tokens in (8192, 48):
        training = {"steps": 2, "tokens_per_micro_batch": tokens}
        run = trained(tmp_path, f"at-{tokens}", algorithm=algorithm, scorers=["judges:varied"], training=training)
        found.append((rows(run.folder), [*seen], load_file(next((run.folder / "final").glob("*model.safetensors")))))
        seen.clear()
    (metrics, chosen, weights), (others, also_chosen, same) = found
    assert len(chosen) == 8 and sum(bool(c.any()) for c in chosen) >= 4
    assert all(torch.equal(a, b) for a, b in zip(chosen, also_chosen, strict=True))
    for one, other in zip(metrics, others, strict=True):
        assert one.pop("stage") == other.pop("stage")
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
    assert_close(weights, same, rtol=1e-4, atol=1e-4)


# Noise while training


def test_noise_is_in_the_updates_and_nowhere_else(tmp_path, steps):
    held_out = {"data": {"source": {"name": "addition", "size": 16, "split": "test"}}, "scorers": ["judges:varied"]}
    sections = {"scorers": ["judges:varied"], "evaluation": {"sums": held_out | {"temperature": 0.0}}}

    def run(name, **algorithm):
        steps.clear()
        return trained(tmp_path, name, algorithm={"name": "alp", "sigma": 0.3} | algorithm, **sections)

    quiet = run("quiet", perturb=None)
    undisturbed = steps[0]
    noisy = run("noisy")
    assert [r["ids"] for r in rollouts(noisy.folder, 1)] == [r["ids"] for r in rollouts(quiet.folder, 1)]
    first, other = rows(noisy.folder, "gradient/norm"), rows(quiet.folder, "gradient/norm")
    assert first[0]["gradient/norm"] != pytest.approx(other[0]["gradient/norm"], rel=1e-3)
    assert all(row["rollout/logprob_gap_max"] < 1e-4 for row in first)  # the engine never has it, nor has the monitor
    assert first[0]["policy/entropy"] == other[0]["policy/entropy"]
    key = next(k for k in rows(noisy.folder)[0] if k.startswith("eval/"))
    began, ended = (row[key] for row in rows(noisy.folder, key))
    assert began == rows(quiet.folder, key)[0][key]
    names = {n for n, _ in undisturbed.before.named_parameters()}
    exported = load_file(next((noisy.folder / "final").glob("*model.safetensors")))
    assert not [n for n in exported if "noise" in n or "log_coef" in n] and len(exported) <= len(names)
    again = {"model": {"make": None, "path": str(noisy.folder / "final")}, "training": {"steps": 1}}
    plain = trained(tmp_path, "again", algorithm={"name": "grpo"}, **sections | again)
    assert rows(plain.folder, key)[0][key] == ended


# Update rules


@pytest.mark.parametrize(("max_kl", "damping", "shares"), [(0.003, 0.1, {1.0}), (0.5, 0.001, {0.5, 1.0})])
def test_no_step_of_trpo_leaves_its_region(tmp_path, steps, max_kl, damping, shares):
    algorithm = {"name": "trpo", "max_kl": max_kl, "damping": damping}
    run = trained(tmp_path, algorithm=algorithm, scorers=["judges:varied"])
    metrics = rows(run.folder)
    for step, row in zip(steps, metrics, strict=True):
        mean = float(divergences(step).mean())
        assert max_kl / 10 < mean <= max_kl * (1 + 1e-3)
        assert row["trust/kl"] == pytest.approx(mean, rel=1e-2, abs=1e-6) and row["update/steps"] == 1
    assert {row["trust/share"] for row in metrics} == shares


def test_every_step_of_fixpo_ends_within_its_bound(tmp_path, steps):
    algorithm = {"name": "fixpo", "bound": 0.002, "epochs": 2, "minibatches": 2}
    sections = {"scorers": ["judges:varied"], "training": {"steps": 4, "learning_rate": 3e-3}}
    run = trained(tmp_path, algorithm=algorithm, **sections)
    metrics = rows(run.folder)
    for step in steps:
        assert float(divergences(step).max()) <= 0.002 * (1 + 1e-3)
    assert sum(row["fixpo/steps"] for row in metrics) > 0


def test_fixpo_goes_back_where_its_steps_do_not_suffice(tmp_path, steps):
    algorithm = {"name": "fixpo", "bound": 1e-7, "max_steps": 1, "epochs": 1, "minibatches": 1}
    sections = {"scorers": ["judges:varied"], "training": {"steps": 2, "learning_rate": 1e-2}}
    run = trained(tmp_path, algorithm=algorithm, **sections)
    assert [row["fixpo/restored"] for row in rows(run.folder)] == [1, 1]
    for step in steps:
        assert float(divergences(step).max()) == 0.0


def test_a_loss_on_pairs_wants_rollouts_that_can_be_paired(tmp_path):
    with pytest.raises(
        RecipeError, match="rollout.group_size: found 1, expected 2 at least: the algorithm trains on pairs"
    ):
        trained(tmp_path, "one", algorithm={"name": "p3o"}, scorers=["judges:varied"], rollout={"group_size": 1})
    with pytest.raises(RecipeError, match="no selection made any. Set algorithm.select, such as best_worst_pairs"):
        trained(tmp_path, "none", algorithm={"name": "rebel", "select": []}, scorers=["judges:varied"])
