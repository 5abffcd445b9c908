"""Credit relative to siblings, on a scale that the whole batch shares."""

from __future__ import annotations

from torch import Tensor

from llmrl.config import NotNegative
from llmrl.ops.groups import differing, group_mean, group_spread


def scalerl(rewards: Tensor, group_ids: Tensor, *, eps: NotNegative = 1e-4) -> Tensor:
    """(r - mean of the group) / (sigma + eps), sigma the root mean square of what was centred (arXiv:2510.13786).

    [B] -> [B]. sigma is taken over the groups with spread, which are the paper's effective batch; the others get exactly
    0. TRL keeps a running mean of sigma instead.
    """
    centred = differing(rewards - group_mean(rewards, group_ids), rewards, group_ids)
    effective = group_spread(rewards, group_ids) & ~rewards.isnan()
    sigma = ((centred**2).sum() / effective.sum().clamp(min=1)).sqrt()
    return centred / (sigma + eps)


def gpg(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """rows / rows with a reward other than 0 · (r - mean of the group) (GPG, arXiv:2504.02546, eq. 6); [B] -> [B].

    A batch with few successes speaks louder. A group without spread gets exactly 0.
    """
    known = ~rewards.isnan()
    alpha = known.sum() / (known & (rewards != 0)).sum().clamp(min=1)
    return differing(alpha * (rewards - group_mean(rewards, group_ids)), rewards, group_ids)


for _part in (scalerl, gpg):
    _part.needs_siblings = True
