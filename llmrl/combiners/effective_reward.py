"""Scores that weigh differently in different domains."""

from __future__ import annotations

from torch import Tensor


def effective_reward(
    reward_parts: Tensor, reward_weights: Tensor, domains: Tensor, *, domain_weights: list[list[float]] | None = None
) -> Tensor:
    """Σ_k weight_k · w[domain, k] · part_k, the reward that a mixture of domains has in effect (arXiv:2507.20150).

    [B,K], [K], [B] -> [B]. domain_weights: one row a domain, one factor a scorer; None is weighted_sum. A part that does
    not apply (NaN) adds nothing. Raises ValueError where a row's domain or a scorer has no factor.
    """
    weights = reward_weights.expand(reward_parts.shape)
    if domain_weights is not None:
        table = reward_weights.new_tensor(domain_weights)
        if table.dim() != 2 or table.shape[1] != reward_parts.shape[1] or (domains >= len(table)).any():
            expected = f"a row for each of {int(domains.max()) + 1} domains and {reward_parts.shape[1]} factors in it"
            raise ValueError(f"domain_weights has the shape {list(table.shape)}; expected {expected}")
        weights = weights * table[domains]
    return (reward_parts.nan_to_num(0.0) * weights).sum(1)
