"""Credit from a critic that has a value for every token."""

from __future__ import annotations

import torch
from torch import Tensor

from llmrl.batch import Credit
from llmrl.config import Share
from llmrl.ops.masked import whiten as whitened
from llmrl.ops.returns import generalised_advantages


def hnpg_critic(
    token_rewards: Tensor,
    old_expected_values: Tensor,
    loss_mask: Tensor,
    *,
    gamma: Share = 1.0,
    gae_lambda: Share = 0.97,
    whiten: bool = True,
) -> Credit:
    """Generalised advantages with V(s) = Σ_a π(a|s) q(s, a) as the baseline (HNPG, arXiv:2311.08384).

    [B,T] each. returns: the discounted sum of what is still to come, which the critic is fitted to on the policy's own
    rollouts; unlike those of `gae` they hold no estimate. whiten: over all counted tokens of the global batch.
    """
    advantages = generalised_advantages(token_rewards, old_expected_values, loss_mask, gamma, gae_lambda)
    returns = generalised_advantages(token_rewards, torch.zeros_like(token_rewards), loss_mask, gamma, 1.0)
    return Credit(whitened(advantages, loss_mask) if whiten else advantages, returns)
