"""A process reward model from step labels."""

from __future__ import annotations

from llmrl.algorithm import Algorithm
from llmrl.config import Positive
from llmrl.objectives import process


def process_reward(*, minibatches: Positive = 1) -> Algorithm:
    """A verdict on every step of a solution, fitted to soft or hard labels (arXiv:2412.11006, arXiv:2312.08935).

    Labels of rollouts from every prefix are written by `reward_models.process_labels`. With model.verdict_tokens the
    verdict is that of the language model's own head.
    """
    return Algorithm(objective=(process.process_reward,), minibatches=minibatches)
