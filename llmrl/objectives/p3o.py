"""Pairwise proximal policy optimisation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from llmrl.batch import Loss
from llmrl.config import AboveZero, NotNegative
from llmrl.ops.ratio import EXPONENT_LIMIT


def p3o(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    chosen_old_logprobs: Tensor,
    rejected_old_logprobs: Tensor,
    chosen_ref_logprobs: Tensor,
    rejected_ref_logprobs: Tensor,
    chosen_rewards: Tensor,
    rejected_rewards: Tensor,
    chosen_loss_mask: Tensor,
    rejected_loss_mask: Tensor,
    *,
    clip: Literal["joint", "separate"] = "joint",
    clip_range: NotNegative = 0.2,
    kl_coef: NotNegative = 0.05,
    max_ratio: AboveZero = 10.0,
) -> Loss:
    """Credit of two answers relative to each other, clipped in log-probabilities (P3O, arXiv:2310.00212). [P,T] and [P].

    a = Σ_t (logprobs - ref_logprobs) of an answer, D = a_1 - a_2; detached q = r_1 - r_2 - kl_coef D and w = the product of
    both answers' ratios to the old policy, within [1 / max_ratio, max_ratio].
    joint (V2): max(-q w D, -q w clip(D, D_old ± clip_range)) / 2. separate (V1): the same of each token's log-probability,
    with the sign of its side, summed over both answers: equal gradients while nothing is clipped. The released code divides
    V1 by the batch's tokens: the same but for that number, which a mean over pairs does not know. V1's value says nothing.
    What is added to both rewards changes nothing.
    """
    now, old, ref = (
        (torch.where(chosen_loss_mask, one, 0.0), torch.where(rejected_loss_mask, other, 0.0))
        for one, other in (
            (chosen_logprobs, rejected_logprobs),
            (chosen_old_logprobs, rejected_old_logprobs),
            (chosen_ref_logprobs, rejected_ref_logprobs),
        )
    )
    gap = (now[0] - ref[0]).sum(1) - (now[1] - ref[1]).sum(1)
    old_gap = (old[0] - ref[0]).sum(1) - (old[1] - ref[1]).sum(1)
    drift = (now[0] - old[0]).sum(1) + (now[1] - old[1]).sum(1)
    ratio = drift.detach().clamp(-EXPONENT_LIMIT, EXPONENT_LIMIT).exp().clamp(1 / max_ratio, max_ratio)
    credit = (chosen_rewards - rejected_rewards - kl_coef * gap.detach()) * ratio
    if clip == "joint":
        loss = pessimistic(credit, gap, old_gap, clip_range)
    else:
        sides = zip((1, -1), now, old, strict=True)
        loss = sum(pessimistic(sign * credit[:, None], new, before, clip_range).sum(1) for sign, new, before in sides)
    moved = (gap - old_gap).detach()
    return Loss(loss / 2, unit="pair", stats={"pairs/change": moved, "pairs/credit": credit})


def pessimistic(credit: Tensor, x: Tensor, start: Tensor, reach: float) -> Tensor:
    """max(-credit · x, -credit · x kept within start ± reach); shapes as they broadcast."""
    near = torch.minimum(torch.maximum(x, start - reach), start + reach)
    return torch.maximum(-credit * x, -credit * near)
