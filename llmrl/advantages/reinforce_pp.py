"""REINFORCE++: no critic, and one scale for all tokens of the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from llmrl.config import Share
from llmrl.ops.groups import differing, group_mean, group_spread
from llmrl.ops.masked import whiten
from llmrl.ops.returns import generalised_advantages


def reinforce_pp(token_rewards: Tensor, loss_mask: Tensor, *, gamma: Share = 1.0) -> Tensor:
    """The discounted reward still to come, whitened over all counted tokens (arXiv:2501.03262, section 3.2).

    R_t = Σ_{u≥t} gamma^(u-t) r_u along the counted tokens, masked ones bridged; A = (R - mean) / sqrt(var + 1e-8). [B,T].
    """
    to_come = generalised_advantages(token_rewards, torch.zeros_like(token_rewards), loss_mask, gamma, 1.0)
    return whiten(to_come, loss_mask)


def reinforce_pp_baseline(rewards: Tensor, loss_mask: Tensor, group_ids: Tensor) -> Tensor:
    """r less the group's mean, whitened over all counted tokens (arXiv:2501.03262, section 3.3).

    rewards [B], loss_mask [B,T] -> [B,T]. Every token counts in the statistics; then a group without spread gets exactly
    0, where the formula alone would give it the batch's shift.
    """
    centred = differing(rewards - group_mean(rewards, group_ids), rewards, group_ids)
    credit = whiten(centred[:, None].expand(loss_mask.shape), loss_mask)
    return torch.where(group_spread(rewards, group_ids)[:, None], credit, torch.zeros_like(credit))


reinforce_pp_baseline.needs_siblings = True
