"""Trust regions in the change of a token's probability, measured from the policy that sampled it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from llmrl.batch import Loss
from llmrl.config import AboveZero, NotNegative
from llmrl.ops.ratio import log_ratio

TINY = 1e-8


def dppo(
    logprobs: Tensor,
    rollout_logprobs: Tensor,
    advantages: Tensor,
    *,
    divergence: Literal["tv", "kl"] = "tv",
    delta_low: NotNegative = 0.2,
    delta_high: NotNegative = 0.2,
    ratio_max: AboveZero = 20.0,
) -> Loss:
    """-sg[min(r, ratio_max)] A logprobs on the tokens that may move further (arXiv:2602.04879, binary approximations).

    p, q: the token's probability now and when sampled, r = p / q; [B,T]. tv: kept while p - q <= delta_high where A > 0
    and p - q >= -delta_low elsewhere. kl: while KL(q || p) of the two outcomes, this token or another, is at most
    delta, or the credit leads p back towards q; 0.05 is the usual delta there.
    """
    ratio = log_ratio(logprobs, rollout_logprobs).exp().detach()
    now, then = logprobs.detach().exp(), rollout_logprobs.exp()
    if divergence == "tv":
        may_rise, may_fall = now - then <= delta_high, now - then >= -delta_low
    else:
        rest = ((1 - then + TINY) / (1 - now + TINY)).log()
        moved = then * (rollout_logprobs - logprobs.detach()) + (1 - then) * rest
        may_rise, may_fall = (moved <= delta_high) | (now <= then), (moved <= delta_low) | (now >= then)
    kept = torch.where(advantages > 0, may_rise, may_fall)
    weight = torch.where(kept, ratio.clamp(max=ratio_max), 0.0)
    return Loss(-weight * advantages * logprobs, stats={"ratio/clip_fraction": ~kept})


def prime(
    logprobs: Tensor,
    rollout_logprobs: Tensor,
    advantages: Tensor,
    *,
    region: Literal["signed", "symmetric"] = "signed",
    delta: float = 0.2,
    kl_coef: NotNegative = 1e-3,
) -> Loss:
    """-A r on the tokens that may move further, plus kl_coef (log r)² on all: the default loss of prime-rl.

    p, q, r as in `dppo`, [B,T], with a live ratio. signed: p - q <= delta where A > 0, >= -delta elsewhere.
    symmetric: |p - q| <= delta whatever the credit; 0.1 is usual there.
    """
    change = log_ratio(logprobs, rollout_logprobs)
    moved = logprobs.detach().exp() - rollout_logprobs.exp()
    if region == "signed":
        kept = torch.where(advantages > 0, moved <= delta, moved >= -delta)
    else:
        kept = moved.abs() <= delta
    surrogate = torch.where(kept, -advantages * change.exp(), 0.0)
    return Loss(surrogate + kl_coef * change**2, stats={"ratio/clip_fraction": ~kept})


prime.needs_zero_advantage_rows = True  # the penalty holds them as well
