"""Token entropies of an optimizer mini-batch, and credit moved by them. Both run before each mini-batch, over all of it."""

from __future__ import annotations

import torch
from torch import Tensor

from llmrl.config import NotNegative, Share
from llmrl.ops.entropy_scores import clip_ranges, scale_of
from llmrl.ops.entropy_scores import scores as scored
from llmrl.ops.ratio import log_ratio


def hapo_scores(
    entropy: Tensor, loss_mask: Tensor, *, quantile: Share = 0.8, released_sign: bool = False
) -> dict[str, Tensor]:
    """entropy_scores [B,T] in [-1, 1]: log-entropy about its quantile, each side over its extreme (arXiv:2509.16591).

    entropy [B,T] in nats, of the current policy. released_sign: as the authors' code has it, where the scores of tokens
    below the quantile are positive too, so that they are never damped nor get the wider lower clip, as the text says.
    """
    scale = scale_of(entropy[loss_mask], quantile)
    scores = scored(torch.where(loss_mask, entropy, 1.0), scale)
    return {"entropy_scores": torch.where(loss_mask, scores.abs() if released_sign else scores, 0.0)}


def hapo_redistribution(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    entropy_scores: Tensor,
    *,
    beta: NotNegative = 1.0,
    clip_low: NotNegative = 0.2,
    clip_high: NotNegative = 0.2,
    clip_scale: float = 1.0,
) -> dict[str, Tensor]:
    """advantages · (1 + beta h) for uncertain tokens that have moved and certain ones that have not (arXiv:2509.16591).

    h = entropy_scores, [B,T]. Moved: the ratio is outside half of the token's own clip range, which has the options of
    the objective `hapo`. So uncertain tokens gain credit and certain ones lose it; all others keep theirs.
    """
    ratio = log_ratio(logprobs.float(), old_logprobs.float()).exp()
    low, high = clip_ranges(entropy_scores.float(), clip_low, clip_high, clip_scale)
    moved = ~((ratio > 1 - low / 2) & (ratio < 1 + high / 2))
    chosen = torch.where(entropy_scores > 0, moved, ~moved)
    return {"advantages": torch.where(chosen, advantages * (1 + beta * entropy_scores), advantages)}
