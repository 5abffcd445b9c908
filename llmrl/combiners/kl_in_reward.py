"""The distance to the reference policy as a cost in the reward."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from llmrl.config import NotNegative
from llmrl.ops import kl
from llmrl.ops.masked import last_counted


def kl_in_reward(
    rewards: Tensor,
    old_logprobs: Tensor,
    ref_logprobs: Tensor,
    loss_mask: Tensor,
    *,
    kl_coef: NotNegative = 0.05,
    estimator: Literal["k1", "k2", "k3"] = "k1",
    per_token: bool = True,
) -> Tensor:
    """-kl_coef · k(old, ref) on every token, the reward on the last one (arXiv:1909.08593, eq. 2).

    rewards [B], the rest [B,T] -> token_rewards [B,T]; without per_token rewards [B], r - kl_coef Σ_t k_t, for baselines of
    a group. Only k1 has the gradient of KL(policy || reference) here, where nothing but the score function is
    differentiated; k3 has its value and the difference of the two directions' gradients, k2 neither.
    """
    estimate = {"k1": kl.k1, "k2": kl.k2, "k3": kl.k3}[estimator]
    cost = (kl_coef * estimate(old_logprobs, ref_logprobs)).where(loss_mask, 0.0)
    return rewards[:, None] * last_counted(loss_mask) - cost if per_token else rewards - cost.sum(1)
