"""The same scores through TRL's own trainers and reward functions, and through our parts, give the same credit."""

import math
from functools import partial

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from llmrl.advantages.gdpo import gdpo
from llmrl.advantages.group import centred, leave_one_out, standardised
from llmrl.combiners.kl_in_reward import kl_in_reward
from llmrl.combiners.length import overlong_penalty
from llmrl.combiners.repetition import repetition_penalty
from llmrl.combiners.weighted_sum import weighted_sum

trl = pytest.importorskip("trl")
rewards = pytest.importorskip("trl.rewards")

SIBLINGS, PROMPTS = 4, ["12+34=", "5+6=", "99-1="]
IDS = torch.arange(len(PROMPTS)).repeat_interleave(SIBLINGS)
WEIGHTS = tensor([1.0, 0.3])
NAN = float("nan")


class Scores:
    """A table that two reward functions of TRL read off, one column each."""

    parts = torch.zeros(len(IDS), 2)

    @classmethod
    def column(cls, index: int, prompts: list[str]) -> list[float | None]:
        return [None if math.isnan(x) else x for x in cls.parts[: len(prompts), index].tolist()]


def first(prompts, **_):
    return Scores.column(0, prompts)


def second(prompts, **_):
    return Scores.column(1, prompts)


def build(kind, config, folder, out, **options):
    from datasets import Dataset
    from transformers import AutoTokenizer

    settings = config(
        output_dir=str(out),
        num_generations=SIBLINGS,
        per_device_train_batch_size=len(IDS),
        max_completion_length=6,
        reward_weights=WEIGHTS.tolist(),
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        **options,
    )
    data = Dataset.from_list([{"prompt": p} for p in PROMPTS])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return kind(folder, [first, second], settings, data, processing_class=tokenizer)


@pytest.fixture(scope="module")
def grpo(tiny_folder, tmp_path_factory):
    return build(trl.GRPOTrainer, trl.GRPOConfig, tiny_folder, tmp_path_factory.mktemp("grpo"))


@pytest.fixture(scope="module")
def rloo(tiny_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("rloo")
    trainer = build(trl.RLOOTrainer, trl.RLOOConfig, tiny_folder, out, beta=0.05)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # a reference that is not the policy
        for parameter in trainer.ref_model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return trainer


def drawn(seed: int, *, unjudged: bool = False) -> torch.Tensor:
    """Two scores a row; one group without spread; with `unjudged` some that do not apply and a row without any."""
    generator = torch.Generator().manual_seed(seed)
    parts = torch.stack([(torch.rand(12, generator=generator) > 0.5).float(), torch.rand(12, generator=generator)], 1)
    parts[0, 0], parts[1, 0] = 1.0, 0.0
    parts[4:8] = tensor([1.0, 0.5])
    if unjudged:
        parts[1, 1], parts[9, 0], parts[2] = NAN, NAN, NAN
    return parts


def credit(trainer, parts):
    """TRL's advantages for the scores given."""
    Scores.parts = parts
    return trainer._generate_and_score_completions([{"prompt": p} for p in PROMPTS for _ in range(SIBLINGS)])


def summed(parts):
    """weighted_sum, and NaN where no scorer judged."""
    return torch.where(parts.isnan().all(1), torch.nan, weighted_sum(parts, WEIGHTS))


@pytest.mark.parametrize("unjudged", [False, True])
@pytest.mark.parametrize(
    "scale, part",
    [
        ("group", partial(standardised, eps=1e-4)),
        ("batch", partial(standardised, eps=1e-4, scale="batch")),
        ("none", centred),
    ],
)
def test_grpo_under_each_scale(grpo, scale, part, unjudged):
    grpo.multi_objective_aggregation, grpo.scale_rewards = "sum_then_normalize", scale
    for seed in range(3):
        parts = drawn(seed, unjudged=unjudged)
        expected = credit(grpo, parts)["advantages"]
        assert_close(part(summed(parts), IDS), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("unjudged", [False, True])
def test_gdpo(grpo, unjudged):
    grpo.multi_objective_aggregation = "normalize_then_sum"
    for seed in range(3):
        parts = drawn(seed, unjudged=unjudged)
        expected = credit(grpo, parts)["advantages"]
        found = gdpo(parts, WEIGHTS, IDS)
        assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert (found[IDS == 1] == 0).all()


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("unjudged", [False, True])
def test_rloo_with_the_divergence_in_the_reward(rloo, standardise, unjudged, monkeypatch):
    seen = []
    original = rloo._get_per_token_logps_and_entropies

    def recording(*args, **kwargs):
        out = original(*args, **kwargs)
        seen.append(out[0])
        return out

    monkeypatch.setattr(rloo, "_get_per_token_logps_and_entropies", recording)
    rloo.normalize_advantages = standardise
    parts = drawn(5, unjudged=unjudged)
    out = credit(rloo, parts)
    old, ref = seen
    mask = out["completion_mask"].bool()
    assert ((old - ref).abs()[mask] > 1e-3).any()
    penalised = kl_in_reward(summed(parts), old, ref, mask, kl_coef=0.05, per_token=False)
    found = leave_one_out(penalised, IDS, standardise=standardise)
    assert_close(found, out["advantages"], rtol=1e-4, atol=1e-5)


ANSWERS = [[1, 2, 3, 4], [5, 5, 5, 5, 5], [1, 2, 1, 2, 1, 2, 1], [7], [1, 2, 3, 1, 2, 3, 1, 2, 3, 4]]


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_repetition(n):
    width = max(map(len, ANSWERS))
    tokens = tensor([row + [9] * (width - len(row)) for row in ANSWERS])
    mask = torch.arange(width) < tensor([len(row) for row in ANSWERS])[:, None]
    expected = rewards.get_repetition_penalty_reward(ngram_size=n, max_penalty=-0.5)(completion_ids=ANSWERS)
    assert_close(repetition_penalty(torch.zeros(5), tokens, mask, n=n, penalty=-0.5), tensor(expected))


def test_overlong():
    lengths = tensor([1, 79, 80, 81, 90, 99, 100, 101, 500])
    theirs = rewards.get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20)
    expected = theirs(completion_ids=[[1] * n for n in lengths.tolist()])
    assert_close(overlong_penalty(torch.zeros(9), lengths, max_tokens=100, buffer=20), tensor(expected))
