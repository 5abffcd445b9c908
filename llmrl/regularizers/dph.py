"""Divergences that keep what the first policy could already do, on its own stored answers (arXiv:2509.07430)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from llmrl.batch import Loss
from llmrl.config import NotNegative
from llmrl.ops import kl
from llmrl.ops.ratio import log_ratio


def dph(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    *,
    divergence: Literal["forward_kl", "js", "alpha", "js_definition"] = "forward_kl",
    alpha: float = 0.2,
) -> Loss:
    """f(u) of each stored token, u = exp(logprobs - ref_logprobs), ref_logprobs those of the policy that wrote it. [B,T].

    forward_kl: u - 1 - log u. js: u log u - (u+1) log((u+1)/2). alpha: (u^(1-α) - (1-α) u - α) / (α (α-1)).
    js_definition: M - 1 - log M, M = (u+1)/2, the half of the JS that stored rows show; `dph_fresh` is the other half.
    All are 0 with slope 0 at u = 1. Their mean is the forward KL of whole answers; of the others it is one of tokens.
    Raises ValueError for alpha 0 or 1, whose limits are KL divergences.
    """
    x = log_ratio(logprobs, ref_logprobs)
    if divergence == "forward_kl":
        f = x.expm1() - x
    elif divergence == "js":
        f = x.exp() * x - (x.exp() + 1) * log_mean(x)
    elif divergence == "alpha":
        if alpha in (0.0, 1.0):
            raise ValueError(f"alpha = {alpha}; expected another number, or divergence forward_kl, the limit at 1")
        f = (((1 - alpha) * x).exp() - (1 - alpha) * x.exp() - alpha) / (alpha * (alpha - 1))
    else:
        f = 0.5 * x.expm1() - log_mean(x)
    return Loss(f, stats={"dph/divergence": f.detach()})


def dph_fresh(logprobs: Tensor, ref_logprobs: Tensor, *, kl_coef: NotNegative = 0.001) -> Loss:
    """kl_coef · k3 against the even mixture with the reference, on fresh rollouts: js_definition's other half. [B,T].

    The released code applies it to a random tenth of the micro-batches; a tenth of the coefficient on all of them has the
    same expectation and does not depend on how a batch is split.
    """
    mixture = ref_logprobs + log_mean(logprobs - ref_logprobs)  # unbounded: a bound here would not be in the other term
    return Loss(kl_coef * kl.k3(logprobs, mixture))


def log_mean(x: Tensor) -> Tensor:
    """log((exp(x) + 1) / 2)."""
    return torch.nn.functional.softplus(x) - math.log(2)
