"""Returns and generalised advantages along a row, over its counted tokens only."""

from __future__ import annotations

import torch
from torch import Tensor


def generalised_advantages(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """delta_t = r_t + gamma V_next - V_t,  A_t = delta_t + gamma lam A_next (arXiv:1506.02438, eq. 16).

    [B,T] each. 'next' is the next counted token: masked ones are bridged. V and A are 0 after the last one.
    """
    advantages = torch.zeros_like(values)
    next_value = torch.zeros_like(values[:, 0])
    next_advantage = torch.zeros_like(next_value)
    for t in range(values.shape[1] - 1, -1, -1):
        here = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * next_advantage
        advantages[:, t] = torch.where(here, advantage, 0.0)
        next_value = torch.where(here, values[:, t], next_value)
        next_advantage = torch.where(here, advantage, next_advantage)
    return advantages
