"""Losses that hold back the tokens whose probability and credit vary together (arXiv:2505.22617).

Which tokens those are is decided in `shaping.covariance`, before each optimizer mini-batch and over the whole of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmrl.batch import Loss
from llmrl.config import NotNegative
from llmrl.objectives.policy import clipped_surrogate
from llmrl.ops.ratio import log_ratio

ROUNDING = 1e-5  # of a log-probability in single precision


def clip_cov(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: NotNegative = 1.0,
    clip_high: NotNegative = 1.0,
) -> Loss:
    """The clipped surrogate within 0 and 2, [B,T] (Clip-Cov); `clip_cov_selection` takes tokens out by weight."""
    return clipped_surrogate(logprobs, old_logprobs, advantages, clip_low=clip_low, clip_high=clip_high)


def kl_cov(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, penalised: Tensor, *, kl_coef: NotNegative = 1.0
) -> Loss:
    """-A r, plus kl_coef |logprobs - old_logprobs| on the penalised tokens, [B,T] (KL-Cov).

    The penalty has no gradient where the policy has not moved, so it takes more than one update a batch. Changes that
    two forward passes of one policy make by rounding do not count as such: their signs would be noise of full size.
    """
    change = log_ratio(logprobs, old_logprobs)
    penalty = torch.where(penalised & (change.abs() > ROUNDING), kl_coef * change.abs(), 0.0)
    return Loss(-advantages * change.exp() + penalty, stats={"covariance/penalised_fraction": penalised})


kl_cov.needs_zero_advantage_rows = True  # they may hold penalised tokens
