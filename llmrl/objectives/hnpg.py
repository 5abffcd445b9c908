"""A critic with a value for every token, fitted on rollouts and on a data set; and what it teaches on the data set."""

from __future__ import annotations

import torch
from torch import Tensor

from llmrl.batch import Loss
from llmrl.config import NotNegative, Share
from llmrl.ops.returns import generalised_advantages


def hnpg_online(action_values: Tensor, returns: Tensor, *, value_coef: NotNegative = 1.0) -> Loss:
    """value_coef · (q(s, a) - R)² on the policy's own rollouts, R what was still to come (HNPG, arXiv:2311.08384). [B,T]."""
    error = (action_values - returns) ** 2
    return Loss(value_coef * error, stats={"critic/error": error.detach()})


def hnpg(
    action_values: Tensor,
    expected_values: Tensor,
    expected_advantages: Tensor,
    token_rewards: Tensor,
    loss_mask: Tensor,
    *,
    gamma: Share = 1.0,
    value_coef: NotNegative = 1.0,
    actor_coef: float = 1.0,
) -> Loss:
    """value_coef · (q(s, a*) - (r + gamma V(s')))² - actor_coef · Σ_a π(a|s) A(s, a) on a data set (HNPG, arXiv:2311.08384).

    [B,T] each; V(s') of the next counted token, 0 after the last, detached; A = q - V, detached. The data set's tokens a*
    teach the critic alone: at its prefixes the policy learns from the critic's view of its own tokens. The paper draws one
    token there; this is the expectation of that draw.
    """
    rewards, values = (torch.where(loss_mask, x, 0.0) for x in (token_rewards, expected_values))
    target = values + generalised_advantages(rewards, values, loss_mask, gamma, 0.0)
    error = (action_values - target) ** 2
    return Loss(value_coef * error - actor_coef * expected_advantages, stats={"critic/error": error.detach()})
