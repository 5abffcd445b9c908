"""Surrogates whose ratio belongs to the whole answer. All but `gspo_token` give one loss an answer, on its mean credit."""

from __future__ import annotations

import torch
from torch import Tensor

from llmrl.batch import Loss
from llmrl.config import NotNegative
from llmrl.ops.masked import masked_sum, row_mean
from llmrl.ops.ratio import EXPONENT_LIMIT, log_ratio


def rloo_clip(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    loss_mask: Tensor,
    *,
    clip_low: NotNegative = 0.2,
    clip_high: NotNegative = 0.2,
) -> Loss:
    """max(-A s, -A clip(s, 1 - clip_low, 1 + clip_high)), s = exp(Σ log ratio): the whole answer's probability ratio.

    [B,T] in, [B] out. TRL's RLOO; the paper (arXiv:2402.14740) has no ratio, which is `reinforce`. The ratio is not
    normalised by length, so long answers clip after little drift.
    """
    total = masked_sum(log_ratio(logprobs, old_logprobs), loss_mask, 1)
    ratio = total.clamp(-EXPONENT_LIMIT, EXPONENT_LIMIT).exp()
    return _clipped(ratio, row_mean(advantages, loss_mask), clip_low, clip_high)


def gspo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    loss_mask: Tensor,
    *,
    clip_low: NotNegative = 3e-4,
    clip_high: NotNegative = 4e-4,
) -> Loss:
    """max(-A s, -A clip(s)), s = exp(mean log ratio) over the answer's tokens (arXiv:2507.18071, eq. 5 and 7).

    [B,T] in, [B] out.
    """
    ratio = row_mean(log_ratio(logprobs, old_logprobs), loss_mask).exp()
    return _clipped(ratio, row_mean(advantages, loss_mask), clip_low, clip_high)


def gspo_token(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    loss_mask: Tensor,
    *,
    clip_low: NotNegative = 3e-4,
    clip_high: NotNegative = 4e-4,
) -> Loss:
    """GSPO with credit for each token: ratio s of the answer, gradient of the token (arXiv:2507.18071, eq. 13 and 14).

    s_t = sg[s] exp(logprobs - sg[logprobs]); [B,T] in and out, reduced by sequence_mean. With one credit an answer its
    gradient is that of `gspo`.
    """
    answer = row_mean(log_ratio(logprobs, old_logprobs), loss_mask).exp().detach()
    ratio = answer[:, None] * (logprobs - logprobs.detach()).exp()
    return _clipped(ratio, advantages, clip_low, clip_high, unit="token")


def luspo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    loss_mask: Tensor,
    *,
    clip_low: NotNegative = 3e-4,
    clip_high: NotNegative = 4e-4,
) -> Loss:
    """GSPO's loss of an answer times its number of counted tokens (arXiv:2602.05261), so that length has no price.

    [B,T] in, [B] out.
    """
    loss = gspo(logprobs, old_logprobs, advantages, loss_mask, clip_low=clip_low, clip_high=clip_high)
    return Loss(loss.values * loss_mask.sum(1), unit="sequence", stats=loss.stats)


def gmpo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    loss_mask: Tensor,
    *,
    clip_low: NotNegative = 0.4,
    clip_high: NotNegative = 0.4,
) -> Loss:
    """-A exp(mean of the clipped log ratios): the geometric mean of token ratios (arXiv:2507.20673).

    A token's log ratio is at most clip_high where A > 0 and at least -clip_low where A < 0: bounds in log space, which
    elsewhere are bounds of the ratio. [B,T] in, [B] out.
    """
    credit = row_mean(advantages, loss_mask)
    change = log_ratio(logprobs, old_logprobs)
    praised = (credit > 0)[:, None]
    bounded = torch.where(praised, change.clamp(max=clip_high), change.clamp(min=-clip_low))
    stats = {"ratio/clip_fraction": torch.where(praised, change > clip_high, change < -clip_low)}
    return Loss(-credit * row_mean(bounded, loss_mask).exp(), unit="sequence", stats=stats)


def _clipped(ratio: Tensor, credit: Tensor, clip_low: float, clip_high: float, unit: str = "sequence") -> Loss:
    loss = torch.maximum(-credit * ratio, -credit * ratio.clamp(1 - clip_low, 1 + clip_high))
    clipped = ((credit > 0) & (ratio > 1 + clip_high)) | ((credit < 0) & (ratio < 1 - clip_low))
    return Loss(loss, unit=unit, stats={"ratio/clip_fraction": clipped})
