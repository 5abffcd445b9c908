"""The clipped surrogate with ranges that follow a token's entropy."""

from __future__ import annotations

import torch
from torch import Tensor

from llmrl.batch import Loss
from llmrl.config import AboveZero, NotNegative
from llmrl.ops.entropy_scores import clip_ranges
from llmrl.ops.ratio import log_ratio


def hapo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    entropy_scores: Tensor,
    *,
    clip_low: NotNegative = 0.2,
    clip_high: NotNegative = 0.2,
    clip_scale: float = 1.0,
    dual_clip: AboveZero | None = 10.0,
) -> Loss:
    """PPO's surrogate where certain tokens may fall further and uncertain ones rise further (arXiv:2509.16591).

    entropy_scores h in [-1, 1], [B,T]: h <= 0 widens the lower side to clip_low (1 - clip_scale h), h > 0 the upper to
    clip_high (1 + clip_scale h). Where A < 0 the loss is at most -A dual_clip.
    """
    low, high = clip_ranges(entropy_scores, clip_low, clip_high, clip_scale)
    ratio = log_ratio(logprobs, old_logprobs).exp()
    near = ratio.clamp(min=1 - low, max=1 + high)
    loss = torch.maximum(-advantages * ratio, -advantages * near)
    if dual_clip is not None:
        loss = torch.where(advantages < 0, torch.minimum(loss, -advantages * dual_clip), loss)
    clipped = ((advantages > 0) & (ratio > 1 + high)) | ((advantages < 0) & (ratio < 1 - low))
    return Loss(loss, stats={"ratio/clip_fraction": clipped})
