"""A ratio that saturates and is damped by how far it has moved, in place of a clip."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from llmrl.batch import Loss
from llmrl.ops.ratio import log_ratio


def mhpo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    bound: float = 1.5,
    shape_up: float = 1.5,
    scale_up: float = 1.0,
    shape_down: float = 2.0,
    scale_down: float = 0.8,
    renormalize: bool = False,
) -> Loss:
    """-A exp(psi - sg[zeta]), [B,T] (arXiv:2603.16929).

    psi = c tanh(log r / c), c = bound; zeta = (softplus(psi) / scale_up)^shape_up
    + (softplus(-psi) / scale_down)^shape_down. zeta is not 0 at r = 1: with the defaults the first gradient is 0.265 of
    REINFORCE's, a factor that renormalize takes out (ours).
    """
    psi = bound * torch.tanh(log_ratio(logprobs, old_logprobs) / bound)
    still = psi.detach()
    hazard = (softplus(still) / scale_up) ** shape_up + (softplus(-still) / scale_down) ** shape_down
    if renormalize:
        hazard = hazard - (math.log(2) / scale_up) ** shape_up - (math.log(2) / scale_down) ** shape_down
    return Loss(-advantages * (psi - hazard).exp(), stats={"ratio/hazard": hazard})
