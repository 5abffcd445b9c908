"""Maximum likelihood of the counted tokens: supervised fine-tuning, and the loss of feedback-conditioned training."""

from __future__ import annotations

from torch import Tensor

from llmrl.batch import Loss


def likelihood(logprobs: Tensor) -> Loss:
    """-logprobs; [B,T]. Under a feedback condition this is the objective of FCP (arXiv:2509.22638)."""
    return Loss(-logprobs)
