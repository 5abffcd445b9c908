"""The distance to the reference policy as a cost in the reward."""

from __future__ import annotations

from torch import Tensor

from llmrl.ops.kl import k1
from llmrl.ops.masked import last_counted


def kl_in_reward(
    rewards: Tensor, old_logprobs: Tensor, ref_logprobs: Tensor, loss_mask: Tensor, *, kl_coef: float = 0.05
) -> Tensor:
    """-kl_coef (old - ref) on every token, the reward on the last one (arXiv:1909.08593, eq. 2; k1, unbiased gradient).

    rewards [B], the rest [B,T] -> token_rewards [B,T].
    """
    cost = (kl_coef * k1(old_logprobs, ref_logprobs)).where(loss_mask, 0.0)
    return rewards[:, None] * last_counted(loss_mask) - cost
