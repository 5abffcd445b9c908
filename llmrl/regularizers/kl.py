"""Penalties for leaving the reference policy, added to the loss. k1 has no place here: its expected gradient is zero."""

from __future__ import annotations

from torch import Tensor

from llmrl.batch import Loss
from llmrl.ops import kl


def kl_k2(logprobs: Tensor, ref_logprobs: Tensor, *, kl_coef: float = 0.001) -> Loss:
    """kl_coef · (logprobs - ref_logprobs)² / 2; on-policy its gradient is that of KL(policy || reference). [B,T]."""
    return Loss(kl_coef * kl.k2(logprobs, ref_logprobs))


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor, *, kl_coef: float = 0.001) -> Loss:
    """kl_coef · (exp(-d) - 1 + d), d = logprobs - ref_logprobs; GRPO's term (arXiv:2402.03300, eq. 4). [B,T].

    Its value is the reverse KL, its gradient that of KL(reference || policy): the two agree near d = 0.
    """
    return Loss(kl_coef * kl.k3(logprobs, ref_logprobs))
