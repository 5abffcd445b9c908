"""Credit of each step by the rewards that it may look ahead to."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from llmrl.advantages.group import centred
from llmrl.ops.groups import index

Mode = Literal["full", "greedy", "k_step", "segments"]


def partial_returns(
    token_rewards: Tensor,
    step_ids: Tensor,
    loss_mask: Tensor,
    group_ids: Tensor,
    *,
    mode: Mode = "full",
    horizon: int | None = None,
    segments: list[int] | None = None,
    prefix_scores: bool = False,
    baseline: Literal["group", "none"] = "group",
) -> Tensor:
    """Σ of the rewards of the steps u that step t plans for, on the tokens of t (arXiv:2603.06138).

    full: u >= t; greedy: u = t; k_step: t <= u < t + horizon; segments: u >= t in the same of `segments`, the segment of
    each step in order, the last one for all that follow. token_rewards, step_ids, loss_mask [B,T], group_ids [B] -> [B,T];
    a step's reward is the sum over its counted tokens. prefix_scores: it is a score of everything so far, and the reward
    is its difference to the step before. baseline group: less the mean over the rollouts of the prompt that have the
    same step, exactly 0 where they do not differ. Raises ValueError without the `horizon` or `segments` of its mode.
    """
    counted = loss_mask & (step_ids >= 0)
    steps = torch.where(counted, step_ids, 0)
    count = int(steps.max()) + 1 if steps.numel() else 0
    here = torch.zeros(len(steps), count, device=steps.device, dtype=torch.bool)
    here[counted.nonzero()[:, 0], steps[counted]] = True
    rewards = torch.zeros(here.shape, dtype=token_rewards.dtype, device=steps.device)
    rewards = rewards.scatter_add(1, steps, torch.where(counted, token_rewards, 0.0))
    if prefix_scores:
        rewards = rewards.diff(dim=1, prepend=torch.zeros_like(rewards[:, :1]))
    returns = rewards @ planned_for(count, mode, horizon, segments).to(rewards).T
    if baseline == "group":
        ids = (index(group_ids)[0][:, None] * count + torch.arange(count, device=steps.device))[here]
        returns = torch.zeros_like(returns).masked_scatter(here, centred(returns[here], ids))
    return torch.where(counted, returns.gather(1, steps), 0.0)


def planned_for(count: int, mode: Mode, horizon: int | None = None, segments: list[int] | None = None) -> Tensor:
    """[S,S] bool: whether step t (row) sees the reward of step u (column)."""
    later = torch.ones(count, count, dtype=torch.bool).triu()
    if mode == "greedy":
        return torch.eye(count, dtype=torch.bool)
    if mode == "k_step":
        if not horizon or horizon < 1:
            raise ValueError(f"mode k_step with horizon {horizon}; expected how many rewards count, 1 up")
        return later & ~later.triu(horizon)
    if mode == "segments":
        if not segments:
            raise ValueError("mode segments without `segments`; expected one of each step: [0, 0, 1]")
        own = torch.tensor((segments + segments[-1:] * count)[:count])
        return later & (own[:, None] == own)
    return later


partial_returns.needs_siblings = ("group",)  # baselines
