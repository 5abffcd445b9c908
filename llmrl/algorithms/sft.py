"""Supervised fine-tuning."""

from __future__ import annotations

from llmrl.algorithm import Algorithm
from llmrl.config import Positive
from llmrl.objectives.likelihood import likelihood


def sft(*, minibatches: Positive = 1) -> Algorithm:
    """Maximum likelihood of demonstrations, a mean over all counted tokens of the update."""
    return Algorithm(objective=(likelihood,), minibatches=minibatches)
