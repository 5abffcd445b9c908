"""Credit of each step by how sure the policy was of it."""

from __future__ import annotations

import torch
from torch import Tensor

from llmrl.config import NotNegative


def empg(
    advantages: Tensor,
    old_entropy: Tensor,
    step_ids: Tensor,
    loss_mask: Tensor,
    *,
    sharpness: float = 1.0,
    bonus_sharpness: float = 1.0,
    bonus_coef: NotNegative = 0.1,
) -> Tensor:
    """A g(h) + bonus_coef · f(h of the next step), less its mean over all steps of the batch (EMPG, arXiv:2509.09265).

    [B,T] each. h is the mean entropy of the step's tokens, scaled to [0, 1] over the batch's steps; g = exp(-sharpness h)
    divided by its mean, f = exp(-bonus_sharpness h); the last step of a rollout has no bonus. A step counts once in every
    mean, however long it is; tokens outside steps keep their credit. In single-turn data, with one step a rollout, only g
    acts. The centring is that of a re-implementation; the authors' own pseudocode ends before it.
    """
    inside = loss_mask & (step_ids >= 0)
    if not inside.any():
        return torch.where(loss_mask, advantages, 0.0)
    width = int(step_ids[inside].max()) + 1
    rows = torch.arange(len(step_ids), device=step_ids.device)[:, None].expand_as(step_ids)
    steps, place, sizes = torch.unique(
        (rows * width + step_ids)[inside], return_inverse=True, return_counts=True
    )  # in order of row and step

    def mean(x: Tensor) -> Tensor:
        return torch.zeros(len(steps), device=x.device).index_add_(0, place, x[inside].float()) / sizes

    credit, entropy = mean(advantages), mean(old_entropy)
    scaled = (entropy - entropy.min()) / (entropy.max() - entropy.min() + 1e-8)
    weight = (-sharpness * scaled).exp()
    bonus = (-bonus_sharpness * scaled).exp()
    of_next = torch.where(steps[:-1] // width == steps[1:] // width, bonus[1:], 0.0)
    modulated = credit * weight / (weight.mean() + 1e-8)
    modulated[:-1] += bonus_coef * of_next
    shaped = torch.where(loss_mask, advantages, 0.0).float()
    return shaped.masked_scatter(inside, (modulated - modulated.mean())[place])
