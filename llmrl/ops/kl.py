"""Estimators of KL(policy || other) from the log-probabilities of sampled tokens.

With d = logprobs - other and tokens drawn from the policy: k1 = d, k2 = d²/2, k3 = exp(-d) - 1 + d. As a loss term k2 has
the gradient of the reverse KL, k3 that of the forward KL (the two agree near d = 0), and k1 has none in expectation.
Source: John Schulman, "Approximating KL divergence" (2020).
"""

from __future__ import annotations

from torch import Tensor

from llmrl.ops.ratio import log_ratio


def k1(logprobs: Tensor, other: Tensor) -> Tensor:
    """d; unbiased, of either sign."""
    return logprobs - other


def k2(logprobs: Tensor, other: Tensor) -> Tensor:
    """d²/2; biased, never negative."""
    return 0.5 * (logprobs - other) ** 2


def k3(logprobs: Tensor, other: Tensor) -> Tensor:
    """exp(-d) - 1 + d; unbiased, never negative."""
    d = log_ratio(logprobs, other)
    return (-d).expm1() + d
