"""REINFORCE on group-relative credit with its off-policy safeguards taken apart: a mask, a weight, a penalty."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from llmrl.batch import Loss
from llmrl.config import AboveZero, NotNegative
from llmrl.ops.ratio import log_ratio


def rec(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    mask: Literal["one_side", "two_side", "ring", "none"] = "one_side",
    weight: Literal["none", "is", "tis", "advantage"] = "none",
    clip_low: NotNegative = 0.2,
    clip_high: NotNegative = 0.2,
    outer_low: float = 0.6,
    outer_high: float = 2.0,
    temperature: AboveZero = 1.0,
    k2_coef: NotNegative = 0.0,
    forward_kl_coef: NotNegative = 0.0,
) -> Loss:
    """-A · W · M · logprobs, gradient through the last factor alone (REC, arXiv:2509.24203, section 4).

    M by the detached ratio ρ = exp(logprobs - old_logprobs). one_side: 1 where A >= 0 and ρ <= 1 + clip_high, or A <= 0
    and ρ >= 1 - clip_low; two_side: 1 where ρ is within both; ring: that, or beyond the outer bounds on the side where a
    step leads back. W: 1 · is: ρ · tis: ρ within the outer bounds · advantage: exp(A / temperature) (RED-Weight).
    k2_coef adds (logprobs - old_logprobs)², forward_kl_coef adds -logprobs, on every token. [B,T] each.
    one_side with weight `is` has the gradient of PPO's clip; none with none is REINFORCE. The released code's objects
    default to outer bounds of 0.4; these are those that it registers, the paper's.
    """
    ratio = log_ratio(logprobs.detach(), old_logprobs).exp()
    near = (ratio >= 1 - clip_low) & (ratio <= 1 + clip_high)
    if mask == "one_side":
        kept = ((advantages >= 0) & (ratio <= 1 + clip_high)) | ((advantages <= 0) & (ratio >= 1 - clip_low))
    elif mask == "two_side":
        kept = near
    elif mask == "ring":
        back = ((advantages >= 0) & (ratio <= 1 - outer_low)) | ((advantages <= 0) & (ratio >= 1 + outer_high))
        kept = near | back
    else:
        kept = torch.ones_like(near)
    if weight == "is":
        factor = ratio
    elif weight == "tis":
        factor = ratio.clamp(1 - outer_low, 1 + outer_high)
    elif weight == "advantage":
        factor = (advantages / temperature).exp()
    else:
        factor = torch.ones_like(ratio)
    loss = -advantages * factor * kept * logprobs
    if k2_coef:
        loss = loss + k2_coef * (logprobs - old_logprobs) ** 2
    if forward_kl_coef:
        loss = loss - forward_kl_coef * logprobs
    return Loss(loss, stats={"ratio/clip_fraction": ~kept})


rec.needs_zero_advantage_rows = True  # its two penalties hold whatever the credit
