"""The Taylor expansion of the objective to second order."""

from __future__ import annotations

import torch
from torch import Tensor

from llmrl.batch import Loss
from llmrl.config import NotNegative
from llmrl.ops.ratio import log_ratio


def taypo2(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    loss_mask: Tensor,
    *,
    eta: NotNegative = 1.0,
    deviation_clip: NotNegative | None = 0.3,
    per_token: bool = False,
) -> Loss:
    """-Σ_t d_t A_t (1 + eta Σ_{s<t} d_s), d = r - 1, over an answer's tokens (arXiv:2003.06259, for language models).

    [B,T] in, [B] out; eta 0 leaves the first order. The expansion holds near the old policy only: d is kept within
    ±deviation_clip, past which it has no gradient (ours; None where another part keeps it near). per_token divides by
    the answer's tokens.
    """
    deviation = log_ratio(logprobs, old_logprobs).expm1()
    if deviation_clip is not None:
        deviation = deviation.clamp(-deviation_clip, deviation_clip)
    deviation = torch.where(loss_mask, deviation, 0.0)
    credit = torch.where(loss_mask, advantages, 0.0)
    before = deviation.cumsum(1) - deviation
    gain = (deviation * credit * (1 + eta * before)).sum(1)
    if per_token:
        gain = gain / loss_mask.sum(1).clamp(min=1)
    return Loss(-gain, unit="sequence", stats={"ratio/deviation": deviation.abs().detach()})
