"""A batch of made tokens, and one update on it by either side: what memory.py and scaling.py measure."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.shapes import Shape
from benchmarks.trainers import LEARNING_RATE, trl_trainer


@dataclass(frozen=True)
class Made:
    """Token ids of prompts, each with its answers."""

    prompts: list[list[int]]
    answers: list[list[list[int]]]


def made(vocabulary: int, prompts: int, group_size: int, prompt_tokens: int, answer_tokens: int) -> Made:
    """Random ids; no answer ends early."""
    rng = random.Random(0)

    def ids(count: int) -> list[int]:
        return [rng.randrange(10, vocabulary) for _ in range(count)]

    return Made(
        [ids(prompt_tokens) for _ in range(prompts)],
        [[ids(answer_tokens) for _ in range(group_size)] for _ in range(prompts)],
    )


def make_model(folder: Path, vocabulary: int, hidden: int, layers: int, positions: int) -> None:
    """Write a random model with that many words; its tokenizer knows the first of them, which is enough to load it."""
    import torch
    from transformers import AutoModelForCausalLM

    from llmrl.policy.tiny import tiny

    tiny(
        str(folder), hidden=hidden, layers=layers, feed_forward=4 * hidden, vocabulary="bytes", max_positions=positions
    )
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)
    model.resize_token_embeddings(vocabulary, mean_resizing=False)
    model.save_pretrained(folder)


def our_updater(model: Path, tokens: int | None = None, **options: Any) -> Any:
    """An Updater with the defaults of a recipe. tokens: of a micro-batch, if other; options: of the `model` section."""
    from llmrl.config import Model, Training
    from llmrl.policy.load import load_policy
    from llmrl.run import make_optimizer
    from llmrl.training.losses import Settings
    from llmrl.training.ranks import Ranks
    from llmrl.training.update import Updater

    training = Training()
    budget = tokens or training.tokens_per_micro_batch
    policy = load_policy(Model(path=str(model), **options), model.parent, seed=0, tokens=budget)
    settings = Settings(budget, 1, training.max_grad_norm, 1.0)
    ranks = Ranks()
    policy.wrapped = ranks.accelerator.prepare_model(policy.module)
    return Updater(policy, make_optimizer(policy, training), ranks, settings)


def our_batch(given: Made) -> Any:
    """A Batch with its advantages; groups of an even number."""
    import torch

    from llmrl.algorithms.grpo import grpo
    from llmrl.training.assemble import assemble
    from llmrl.training.credit import assign_credit
    from llmrl.training.ranks import Ranks
    from llmrl.types import Group, Prompt, Rollout

    prompts = [Prompt(str(i), ids=tuple(ids)) for i, ids in enumerate(given.prompts)]
    groups = [
        Group(prompt, tuple(Rollout(tuple(ids), "") for ids in some))
        for prompt, some in zip(prompts, given.answers, strict=True)
    ]
    places = [(g, i) for g, group in enumerate(groups) for i in range(len(group.rollouts))]
    batch = assemble(groups, places, [prompts[g] for g, _ in places], 0, [], 1.0)
    batch.arrays["rewards"] = torch.arange(len(batch)).float()  # none is its group's mean: no row is left out
    assign_credit(batch, grpo(), Ranks())
    return batch


def our_update(updater: Any, batch: Any) -> None:
    from llmrl.algorithms.grpo import grpo

    updater.update(batch, grpo(), learning_rate=LEARNING_RATE, seed=0)


def trl_updater(shape: Shape, folder: Path, given: Made, options: dict[str, Any], steps: int, callback: Any) -> Any:
    """A GRPOTrainer whose answers are the made ones."""
    trainer = trl_trainer(shape, folder, steps, 0, options, (callback,))

    def generate(prompts: list[Any]) -> tuple:
        ids = [prompt for prompt, some in zip(given.prompts, given.answers, strict=True) for _ in some]
        trainer._metrics["train"]["num_tokens"] = [0]
        answers = [answer for some in given.answers for answer in some]
        return ids, answers, None, [[{"role": "assistant", "content": ""}]] * len(ids), None, {}, None, []

    trainer._generate = generate
    return trainer
