"""When an expert's answer is worth imitating."""

from __future__ import annotations

from torch import Tensor

from llmrl.config import Natural
from llmrl.ops.groups import group_sum


def ahpo_gate(rewards: Tensor, group_ids: Tensor, *, min_right: Natural = 1, threshold: float = 0.5) -> Tensor:
    """1 where fewer than `min_right` rollouts of the prompt are right, else 0 (AHPO, arXiv:2510.08540); [B] -> [B].

    Right: reward >= threshold. The paper does not say how many have to be right; 1 asks the expert when all fail.
    """
    right = group_sum((rewards >= threshold).long(), group_ids)
    return (right < min_right).to(rewards.dtype)
