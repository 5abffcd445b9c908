"""The policy's change since the batch began."""

from __future__ import annotations

from torch import Tensor

EXPONENT_LIMIT = 20.0  # exp(20) is past any ratio that a clip lets through, and still finite in every dtype


def log_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """logprobs - old_logprobs, kept within ±20 so that its exponential stays finite. Shapes are equal."""
    return (logprobs - old_logprobs).clamp(-EXPONENT_LIMIT, EXPONENT_LIMIT)
