"""Credit of each segment of an answer by that segment's own reward."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from llmrl.advantages.group import centred
from llmrl.ops.groups import subgroups


def blockwise(
    reward_parts: Tensor,
    reward_weights: Tensor,
    block_ids: Tensor,
    loss_mask: Tensor,
    group_ids: Tensor,
    *,
    baseline: Literal["outcome", "group", "batch", "none"] = "outcome",
) -> Tensor:
    """weight_k (r_k - b_k) on the tokens of block k, r_k the k-th scorer's part (arXiv:2602.10231, sections 4.2, 4.3).

    reward_parts [B,K], reward_weights [K], block_ids, loss_mask [B,T], group_ids [B] -> [B,T]. b_0 is the group's mean;
    later blocks subtract the mean over rows of the group with the same outcome (the first part, rounded), over the group,
    over the batch, or nothing. A set of one, or without spread, gets exactly 0, as do tokens outside every block and
    blocks without a scorer. Of a part that does not apply (NaN) the row leaves the means and gets 0: for a block that
    could not be read a scorer should give its worst value.
    """
    everything = torch.zeros_like(group_ids)
    outcome = subgroups(group_ids, reward_parts[:, 0].nan_to_num(-1.0).round())
    later = {"outcome": outcome, "group": group_ids, "batch": everything}
    credit = torch.zeros(loss_mask.shape, dtype=reward_parts.dtype, device=reward_parts.device)
    for block, rewards in enumerate(reward_parts.unbind(1)):
        if block and baseline == "none":
            own = rewards.nan_to_num(0.0)
        else:
            own = centred(rewards, later[baseline] if block else group_ids)
        placed = (reward_weights[block] * own)[:, None]
        credit = torch.where(loss_mask & (block_ids == block), placed, credit)
    return credit


blockwise.needs_siblings = ("outcome", "group")  # baselines
