"""The policy losses and corrections beside TRL's own trainer, on the same batch: loss and gradient by log-probability.

TRL's GRPOTrainer runs as it is from a generated batch to the loss. Two of its methods are replaced: the one that
generates, and the one that runs the model, whose log-probabilities are given here.
"""

from functools import partial

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from llmrl.batch import Batch, call
from llmrl.objectives.policy import clipped_surrogate, two_sided_clip
from llmrl.objectives.sapo import sapo
from llmrl.objectives.sequence import gspo, luspo
from llmrl.objectives.weighted import cispo, vespo
from llmrl.ops.reduce import reduce_tokens, reduce_units, row_coefficients
from llmrl.regularizers.kl import kl_k3, kl_k3_corrected
from llmrl.shaping.importance import importance_weights
from llmrl.shaping.opsm import opsm

trl = pytest.importorskip("trl")

LENGTHS = (5, 2, 6, 1, 4, 3, 6, 5)
REWARDS = (1.0, 0.0, 0.5, 0.0, 0.2, 1.0, 1.0, 0.0)
LONGEST = 7  # the limit of an answer
HOLES = ((0, 2), (2, 0), (2, 3), (7, 4))  # tokens that a tool wrote
SETTINGS = {  # TRL's, where a case below says nothing
    "loss_type": "grpo",
    "importance_sampling_level": "token",
    "off_policy_mask_threshold": None,
    "epsilon_low": 0.2,
    "epsilon_high": 0.2,
    "beta": 0.0,
    "use_vllm": False,
    "vllm_importance_sampling_correction": False,
    "vllm_importance_sampling_mode": "sequence_mask",
    "vllm_importance_sampling_clip_min": None,
    "vllm_importance_sampling_clip_max": 3.0,
    "args.delta": None,
    "args.use_bias_correction_kl": False,
}


@pytest.fixture(scope="module")
def trainer(tiny_folder, tmp_path_factory):
    from datasets import Dataset
    from transformers import AutoTokenizer

    config = trl.GRPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")), per_device_train_batch_size=8, num_generations=4,
        gradient_accumulation_steps=1, steps_per_generation=2, max_completion_length=LONGEST, use_cpu=True, bf16=False,
        report_to="none", save_strategy="no", disable_tqdm=True, gradient_checkpointing=False,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    data = Dataset.from_dict({"prompt": ["1+1=", "2+2="] * 4})
    made = trl.GRPOTrainer(
        tiny_folder, lambda completions, **_: list(REWARDS), config, data, processing_class=tokenizer
    )
    made.model.eval()
    made.ref_model = object()
    return made


def given(seed):
    """Arrays of eight answers to two prompts, in the vocabulary's names."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(LENGTHS)) < tensor(LENGTHS)[:, None]
    for row, column in HOLES:
        mask[row, column] = False
    old = -torch.rand(mask.shape, generator=generator) * 2 - 0.05
    around = {
        name: (old + size * torch.randn(mask.shape, generator=generator)).clamp(max=-0.01)
        for name, size in (("logprobs", 0.3), ("rollout_logprobs", 0.4), ("ref_logprobs", 0.3))
    }
    groups = tensor([0] * 4 + [1] * 4)
    return around | {"old_logprobs": old, "loss_mask": mask, "group_ids": groups}


def theirs(trainer, monkeypatch, arrays, settings):
    """(loss, gradient, advantages) of TRL."""
    for name, value in (SETTINGS | settings).items():
        holder = trainer.args if name.startswith("args.") else trainer
        monkeypatch.setattr(holder, name.removeprefix("args."), value)
    answers = [[5 + i for i in range(length)] for length in LENGTHS]
    written = [[int((row, i) not in HOLES) for i in range(length)] for row, length in enumerate(LENGTHS)]
    sampled = [row[:length].tolist() for row, length in zip(arrays["rollout_logprobs"], LENGTHS, strict=True)]
    sampled = sampled if trainer.use_vllm else None
    leaf = arrays["logprobs"].clone().requires_grad_()

    def generate(prompts):
        return [[3, 4]] * 8, answers, written, ["text"] * 8, sampled, {}, None, None

    def forward(model, *_, **__):
        now = leaf if torch.is_grad_enabled() else arrays["old_logprobs"]
        return (arrays["ref_logprobs"] if model is trainer.ref_model else now), torch.ones_like(leaf), None

    monkeypatch.setattr(trainer, "_generate", generate)
    monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", forward)
    inputs = trainer._generate_and_score_completions([{"prompt": "1+1="}] * 4 + [{"prompt": "2+2="}] * 4)
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    return loss.detach(), leaf.grad, inputs["advantages"]


def ours(arrays, parts, mode, shaping=()):
    """(loss, gradient) as our trainer reduces the parts, of which the first is the objective."""
    mask = arrays["loss_mask"]
    leaf = arrays["logprobs"].clone().requires_grad_()
    weights = torch.ones(mask.shape)
    for part in shaping:
        weights = weights * call(part, Batch([], arrays))["weights"]
    coefficients = row_coefficients(mode, mask.sum(1), arrays["group_ids"], LONGEST)
    total = torch.zeros(())
    for i, part in enumerate(parts):
        loss = call(part, Batch([], arrays | {"logprobs": leaf}))
        if loss.unit == "token":
            total = total + reduce_tokens(loss.values, mask, coefficients, weights if i == 0 else None)
        else:
            assert not shaping
            total = total + reduce_units(loss.values, 8)
    total.backward()
    return total.detach(), leaf.grad


def vllm(mode, **bounds):
    named = {f"vllm_importance_sampling_clip_{k}": v for k, v in bounds.items()}
    return {
        "use_vllm": True,
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": mode,
    } | named


SEQUENCE = {"importance_sampling_level": "sequence"}
WEIGHTED = importance_weights
CASES = {
    "grpo": ({}, [clipped_surrogate], "sequence_mean", []),
    "grpo, clip higher": (
        {"epsilon_low": 0.1, "epsilon_high": 0.28},
        [partial(clipped_surrogate, clip_low=0.1, clip_high=0.28)],
        "sequence_mean",
        [],
    ),
    "bnpo": ({"loss_type": "bnpo"}, [clipped_surrogate], "token_mean", []),
    "dapo": ({"loss_type": "dapo"}, [clipped_surrogate], "token_mean", []),
    "dr_grpo": ({"loss_type": "dr_grpo"}, [clipped_surrogate], "fixed_length", []),
    "two-sided": ({"args.delta": 1.3}, [partial(two_sided_clip, delta=1.3)], "sequence_mean", []),
    "cispo": ({"loss_type": "cispo", "epsilon_high": 1.2}, [partial(cispo, ratio_max=1.2)], "token_mean", []),
    "sapo": ({"loss_type": "sapo"}, [sapo], "sequence_mean", []),
    "gspo": (SEQUENCE, [partial(gspo, clip_low=0.2, clip_high=0.2)], "sequence_mean", []),
    "gspo, its clip": (
        SEQUENCE | {"epsilon_low": 3e-4, "epsilon_high": 4e-4},
        [gspo],
        "sequence_mean",
        [],
    ),
    "luspo": (SEQUENCE | {"loss_type": "luspo"}, [partial(luspo, clip_low=0.2, clip_high=0.2)], "token_mean", []),
    "k3": ({"beta": 0.04}, [clipped_surrogate, partial(kl_k3, kl_coef=0.04)], "sequence_mean", []),
    "k3, corrected": (
        {"beta": 0.04, "loss_type": "dapo", "args.use_bias_correction_kl": True},
        [clipped_surrogate, partial(kl_k3_corrected, kl_coef=0.04)],
        "token_mean",
        [],
    ),
    "opsm by the sampler": (
        vllm("token_truncate", max=1e9, min=None) | {"off_policy_mask_threshold": 0.05},
        [clipped_surrogate],
        "sequence_mean",
        [partial(WEIGHTED, high=1e9), partial(opsm, threshold=0.05)],
    ),
    "vespo by the sampler": (
        vllm("token_truncate", max=1e9, min=None) | {"loss_type": "vespo"},
        [vespo],
        "token_mean",
        [],
    ),
}
CASES |= {
    f"{level} {mode} {bounds}": (
        vllm(f"{level}_{mode}", **bounds) | {"loss_type": "dapo"},
        [clipped_surrogate],
        "token_mean",
        [partial(WEIGHTED, level=level, mode=mode, high=bounds["max"] or 1e9, low=bounds["min"])],
    )
    for level in ("token", "sequence")
    for mode in ("truncate", "mask")
    for bounds in ({"max": 1.3, "min": None}, {"max": 1.3, "min": 0.8}, {"max": None, "min": 0.8})
}
CASES["a mask under KL"] = (
    vllm("token_mask", max=1.3, min=None) | {"beta": 0.04},
    [clipped_surrogate, partial(kl_k3, kl_coef=0.04)],
    "sequence_mean",
    [partial(WEIGHTED, mode="mask", high=1.3)],
)


def assert_parity(trainer, monkeypatch, arrays, settings, parts, mode, shaping):
    loss, gradient, advantages = theirs(trainer, monkeypatch, arrays, settings)
    mask = arrays["loss_mask"]
    found = ours(arrays | {"advantages": advantages[:, None].expand(mask.shape)}, parts, mode, shaping)
    assert_close(found[0], loss, rtol=1e-5, atol=1e-6)
    assert_close(found[1], gradient, rtol=1e-5, atol=1e-7)
    assert (gradient != 0).any() and (gradient[~mask] == 0).all()
    return gradient


@pytest.mark.parametrize("settings, parts, mode, shaping", CASES.values(), ids=CASES)
def test_loss_and_gradient_are_those_of_trl(trainer, monkeypatch, settings, parts, mode, shaping):
    for seed in range(3):
        assert_parity(trainer, monkeypatch, given(seed), settings, parts, mode, shaping)


def test_without_a_sampler_of_its_own_the_old_policy_stands_for_it(trainer, monkeypatch):
    for seed in range(3):
        arrays = given(seed)
        arrays["rollout_logprobs"] = arrays["old_logprobs"]
        assert_parity(trainer, monkeypatch, arrays, {"loss_type": "vespo"}, [vespo], "token_mean", [])
        masked = {"off_policy_mask_threshold": 0.02, "loss_type": "dapo"}
        shaped = [partial(opsm, threshold=0.02)]
        full = assert_parity(trainer, monkeypatch, arrays, {"loss_type": "dapo"}, [clipped_surrogate], "token_mean", [])
        cut = assert_parity(trainer, monkeypatch, arrays, masked, [clipped_surrogate], "token_mean", shaped)
        assert (full != cut).any()


def test_the_weights_differ_between_the_cases(trainer, monkeypatch):
    """A case that no bound touches would say nothing."""
    arrays = given(0)
    named = [name for name in CASES if name.startswith(("token ", "sequence "))]
    gradients = {name: theirs(trainer, monkeypatch, arrays, CASES[name][0])[1] for name in named}
    assert len({str(g.tolist()) for g in gradients.values()}) == len(named) == 12
