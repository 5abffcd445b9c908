"""Tokens whose log-probability and credit vary together most, which is where entropy is lost (arXiv:2505.22617).

Both parts run before each optimizer mini-batch; means and counts are over the whole of it, where the authors' code takes
them over the micro-batch that a device happens to hold.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmrl.config import NotNegative, Share
from llmrl.ops.masked import masked_mean
from llmrl.ops.ratio import log_ratio


def covariances(logprobs: Tensor, advantages: Tensor, loss_mask: Tensor) -> Tensor:
    """(A - mean A)(logprobs - mean logprobs), [B,T], means over all counted tokens; 0 elsewhere."""
    credit, likely = (x - masked_mean(x, loss_mask) for x in (advantages, logprobs))
    return torch.where(loss_mask, credit * likely, 0.0)


def clip_cov_selection(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    loss_mask: Tensor,
    step_number: Tensor,
    *,
    fraction: Share = 2e-4,
    covariance_low: float = 1.0,
    covariance_high: float = 5.0,
    clip_low: NotNegative = 1.0,
    clip_high: NotNegative = 1.0,
    seed: int = 0,
) -> dict[str, Tensor]:
    """weights [B,T]: 0 on tokens drawn among those whose covariance lies between the bounds, 1 elsewhere (Clip-Cov).

    Drawn without replacement: max(1, fraction · counted tokens), or all there are. Tokens that the objective's clip
    holds already are not drawn. The draw depends on seed, step and the covariances, and not on where a row stands.
    """
    found = covariances(logprobs, advantages, loss_mask)
    ratio = log_ratio(logprobs, old_logprobs).exp()
    clipped = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high) > -advantages * ratio
    eligible = loss_mask & (found > covariance_low) & (found < covariance_high) & ~clipped
    places = eligible.flatten().nonzero().squeeze(1)
    places = places[found.flatten()[places].argsort()]
    generator = torch.Generator().manual_seed(seed * 1_000_003 + int(step_number))
    drawn = torch.randperm(len(places), generator=generator)[: _share(fraction, loss_mask)]
    weights = torch.ones_like(found).flatten()
    weights[places[drawn.to(places.device)]] = 0.0
    return {"weights": weights.reshape(found.shape)}


def kl_cov_selection(
    logprobs: Tensor, advantages: Tensor, loss_mask: Tensor, *, fraction: Share = 2e-3
) -> dict[str, Tensor]:
    """penalised [B,T] bool: the max(1, fraction · counted tokens) tokens of largest covariance (KL-Cov).

    fraction is a share, where the authors' configuration has percent. 2e-3 for their 7B model, 2e-4 for 32B.
    """
    found = covariances(logprobs, advantages, loss_mask).masked_fill(~loss_mask, -torch.inf).flatten()
    count = min(_share(fraction, loss_mask), int(loss_mask.sum()))
    penalised = torch.zeros_like(loss_mask).flatten()
    penalised[found.topk(count).indices] = True
    return {"penalised": penalised.reshape(loss_mask.shape)}


def _share(fraction: float, loss_mask: Tensor) -> int:
    return max(1, int(fraction * int(loss_mask.sum())))
