"""Penalties for leaving the reference policy, added to the loss. [B,T] each, d = logprobs - ref_logprobs.

What a penalty does is its gradient, not its value (arXiv:2506.09477 works the estimators out): of tokens drawn from the
policy, k1's is 0 in expectation, k2's that of KL(policy || reference), k3's that of KL(reference || policy).
"""

from __future__ import annotations

from torch import Tensor

from llmrl.batch import Loss
from llmrl.config import NotNegative
from llmrl.ops import kl
from llmrl.ops.ratio import log_ratio


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor, *, kl_coef: NotNegative = 0.001) -> Loss:
    """kl_coef · d: the right value, and an expected gradient of exactly 0, so that it holds nothing back.

    Some trainers offer it in the loss. It has its effect in the reward: see the combiner kl_in_reward.
    """
    return Loss(kl_coef * kl.k1(logprobs, ref_logprobs))


def kl_k2(logprobs: Tensor, ref_logprobs: Tensor, *, kl_coef: NotNegative = 0.001) -> Loss:
    """kl_coef · d² / 2; on-policy its gradient is that of KL(policy || reference)."""
    return Loss(kl_coef * kl.k2(logprobs, ref_logprobs))


def kl_k3(
    logprobs: Tensor, ref_logprobs: Tensor, *, kl_coef: NotNegative = 0.001, straight_through: bool = False
) -> Loss:
    """kl_coef · (exp(-d) - 1 + d); GRPO's term (arXiv:2402.03300, eq. 4).

    Its value is the reverse KL, its gradient that of KL(reference || policy): the two agree near d = 0.
    straight_through: the value of k3 with the gradient of k2, which is that of the reverse KL.
    """
    penalty = kl.k3(logprobs, ref_logprobs)
    if straight_through:
        slope = kl.k2(logprobs, ref_logprobs)
        penalty = penalty.detach() + slope - slope.detach()
    return Loss(kl_coef * penalty)


def kl_k3_corrected(
    logprobs: Tensor, old_logprobs: Tensor, ref_logprobs: Tensor, *, kl_coef: NotNegative = 0.001
) -> Loss:
    """kl_coef · r (exp(-d) - 1 + d), r = exp(logprobs - old_logprobs) with gradient (arXiv:2512.02556, section 3.1).

    Of tokens drawn from the old policy, value and gradient are those of KL(policy || reference) in expectation.
    """
    return Loss(kl_coef * log_ratio(logprobs, old_logprobs).exp() * kl.k3(logprobs, ref_logprobs))


def kl_full(ref_kl: Tensor, *, kl_coef: NotNegative = 0.001) -> Loss:
    """kl_coef · KL(policy || reference) over the whole vocabulary: exact at every prefix, without the noise of a draw."""
    return Loss(kl_coef * ref_kl)


def kl_old(old_kl: Tensor, *, kl_coef: NotNegative = 1.0) -> Loss:
    """kl_coef · KL(policy as the updates began || policy) over the vocabulary: what a trust region is measured by.

    Its value and its gradient are 0 at the first update of a batch; the curvature is what update `trpo` reads of it.
    """
    return Loss(kl_coef * old_kl, stats={"trust/kl": old_kl.detach()})
