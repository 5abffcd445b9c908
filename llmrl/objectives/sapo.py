"""A soft gate on the ratio in place of a clip."""

from __future__ import annotations

import torch
from torch import Tensor

from llmrl.batch import Loss
from llmrl.config import AboveZero
from llmrl.ops.ratio import log_ratio


def sapo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    temperature_positive: AboveZero = 1.0,
    temperature_negative: AboveZero = 1.05,
) -> Loss:
    """-A (4 / tau) sigmoid(tau (r - 1)), [B,T] (arXiv:2511.20347); tau by the sign of A, 0 counting as negative.

    The gradient is that of REINFORCE times 4 s (1 - s) r, s the sigmoid: exactly 1 at r = 1, falling on both sides.
    """
    ratio = log_ratio(logprobs, old_logprobs).exp()
    temperature = torch.where(advantages > 0, temperature_positive, temperature_negative)
    gate = (temperature * (ratio - 1)).sigmoid()
    stats = {"ratio/gate": (4 * gate * (1 - gate)).detach()}
    return Loss(-advantages * gate * 4 / temperature, stats=stats)
