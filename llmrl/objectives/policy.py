"""Policy-gradient objectives: one loss a token; averaging is ops.reduce's job."""

from __future__ import annotations

import torch
from torch import Tensor

from llmrl.batch import Loss
from llmrl.config import AboveZero, NotNegative
from llmrl.ops.ratio import log_ratio


def clipped_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: NotNegative = 0.2,
    clip_high: NotNegative = 0.2,
    dual_clip: AboveZero | None = None,
) -> Loss:
    """PPO's pessimistic surrogate (arXiv:1707.06347, eq. 7); a wider clip_high alone is DAPO's change.

    loss = max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high))   with   r = exp(logprobs - old_logprobs)
    dual_clip c > 1 (arXiv:1912.09729): where A < 0 the loss is at most -A c. [B,T] each; gradient flows through logprobs.
    """
    ratio = log_ratio(logprobs, old_logprobs).exp()
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip_low, 1 + clip_high))
    if dual_clip is not None:
        loss = torch.where(advantages < 0, torch.minimum(loss, -advantages * dual_clip), loss)
    high, low = (advantages > 0) & (ratio > 1 + clip_high), (advantages < 0) & (ratio < 1 - clip_low)
    stats = {"ratio/clip_fraction": high | low, "ratio/clip_high_fraction": high, "ratio/clip_low_fraction": low}
    if dual_clip is not None:
        stats["ratio/dual_clip_fraction"] = (advantages < 0) & (ratio > dual_clip)
    return Loss(loss, stats=stats)


def two_sided_clip(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: NotNegative = 0.2,
    clip_high: NotNegative = 0.2,
    delta: float = 4.0,
) -> Loss:
    """The clipped surrogate with its unclipped branch bounded as well (INTELLECT-2, arXiv:2505.07291).

    loss = max(-A min(r, delta), -A clip(r, 1 - clip_low, 1 + clip_high)); [B,T] each. With delta > 1 + clip_high it is the
    dual clip at delta: positive credit never notices.
    """
    ratio = log_ratio(logprobs, old_logprobs).exp()
    near = ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = torch.maximum(-advantages * ratio.clamp(max=delta), -advantages * near)
    bounded = (advantages < 0) & (ratio > delta)
    clipped = ((advantages > 0) & (ratio > 1 + clip_high)) | ((advantages < 0) & (ratio < 1 - clip_low))
    return Loss(loss, stats={"ratio/clip_fraction": clipped, "ratio/bounded_fraction": bounded})
