"""What the critic is fitted with."""

from __future__ import annotations

import torch
from torch import Tensor

from llmrl.batch import Loss
from llmrl.config import NotNegative


def value(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    *,
    value_coef: NotNegative = 1.0,
    value_clip: NotNegative | None = 0.2,
) -> Loss:
    """value_coef · ½ max((V - R)², (clip(V, V_old ± value_clip) - R)²); None drops the clipped branch.

    [B,T] each. The clip is an absolute range: scale rewards to about 1 first. Source: the implementation that
    accompanies arXiv:1707.06347, described in arXiv:2005.12729.
    """
    error = (values - returns) ** 2
    if value_clip is not None:
        near = old_values + (values - old_values).clamp(-value_clip, value_clip)
        error = torch.maximum(error, (near - returns) ** 2)
    return Loss(value_coef * 0.5 * error, stats={"critic/error": error.detach()})
