"""Credit relative to the other rollouts of the same prompt. All read rewards and group_ids [B] and give advantages [B].

A group of one, or without spread, gets exactly 0; a row without a reward (NaN) leaves the statistics and gets 0.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from llmrl.config import NotNegative
from llmrl.ops.groups import differing, group_count, group_mean, group_std, group_sum


def standardised(
    rewards: Tensor, group_ids: Tensor, *, eps: NotNegative = 1e-6, scale: Literal["group", "batch"] = "group"
) -> Tensor:
    """(r - mean) / (std + eps) within the group, std with n-1 (GRPO, arXiv:2402.03300, section 4.1).

    rewards, group_ids [B] -> advantages [B]. scale batch: the std of all rewards of the batch instead. A group of one,
    or without spread, gets exactly 0.
    """
    everything = group_ids if scale == "group" else torch.zeros_like(group_ids)
    centred = rewards - group_mean(rewards, group_ids)
    return differing(centred / (group_std(rewards, everything) + eps), rewards, group_ids)


def leave_one_out(rewards: Tensor, group_ids: Tensor, *, standardise: bool = False) -> Tensor:
    """r less the mean of its siblings (RLOO, arXiv:2402.14740, eq. 6).

    A_i = r_i - Σ_{j≠i} r_j / (n - 1) = n / (n - 1) · (r_i - mean); [B] -> [B]. standardise: (A - mean) / (std + 1e-4) over
    the batch, as TRL offers. A group of one, or without spread, gets exactly 0.
    """
    count = group_count(rewards, group_ids)
    credit = (rewards - group_mean(rewards, group_ids)) * count / (count - 1).clamp(min=1)
    if standardise:
        everything = torch.zeros_like(group_ids)
        credit = (credit - group_mean(credit, everything)) / (group_std(credit, everything) + 1e-4)
    return differing(credit, rewards, group_ids)


def centred(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """r less the group's mean, not divided by anything (Dr.GRPO, arXiv:2503.20783, section 3.2); [B] -> [B].

    The paper's loss goes with the reduction `fixed_length`. A group without spread gets exactly 0.
    """
    return differing(rewards - group_mean(rewards, group_ids), rewards, group_ids)


def length_weighted(rewards: Tensor, lengths: Tensor, group_ids: Tensor) -> Tensor:
    """r less the group's mean reward a token, the baseline of least variance (OPO, arXiv:2505.23585, section 3.2).

    A_i = r_i - Σ_j L_j r_j / Σ_j L_j, so that Σ_i L_i A_i = 0; [B] each. A group without spread gets exactly 0, and so
    does one that wrote nothing.
    """
    known = torch.where(rewards.isnan(), torch.zeros_like(rewards), lengths.to(rewards.dtype))
    tokens = group_sum(known, group_ids)
    credit = rewards - group_sum(known * rewards, group_ids) / tokens.clamp(min=1)
    return differing(torch.where(tokens > 0, credit, torch.zeros_like(credit)), rewards, group_ids)


def maxrl(rewards: Tensor, group_ids: Tensor, *, eps: NotNegative = 1e-6) -> Tensor:
    """(r - mean) / (mean + eps) within the group: the gradient of log-likelihood as n grows (arXiv:2602.02710).

    [B] -> [B], for rewards of 0 and more. A group without a success gets exactly 0, as does one without spread. Below 0
    the paper says nothing: |mean| divides here, so that no sign is ever turned.
    """
    mean = group_mean(rewards, group_ids)
    credit = (rewards - mean) / (mean.abs() + eps)
    return differing(torch.where(mean != 0, credit, torch.zeros_like(credit)), rewards, group_ids)


for _part in (standardised, leave_one_out, centred, length_weighted, maxrl):
    _part.needs_siblings = True
