"""Credit from a critic."""

from __future__ import annotations

from torch import Tensor

from llmrl.batch import Credit
from llmrl.config import Share
from llmrl.ops.masked import whiten as whitened
from llmrl.ops.returns import generalised_advantages


def gae(
    token_rewards: Tensor,
    old_values: Tensor,
    loss_mask: Tensor,
    *,
    gamma: Share = 1.0,
    gae_lambda: Share = 0.95,
    whiten: bool = True,
) -> Credit:
    """Generalised advantage estimation (arXiv:1506.02438); returns = advantages + old_values, before whitening.

    [B,T] each. whiten: standardise the advantages over all counted tokens of the global batch.
    """
    advantages = generalised_advantages(token_rewards, old_values, loss_mask, gamma, gae_lambda)
    returns = (advantages + old_values).where(loss_mask, 0.0)
    return Credit(whitened(advantages, loss_mask) if whiten else advantages, returns)
