"""How far the best policy jumps when the reward's weights move a little."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from llmrl.config import AboveZero, Positive
from llmrl.ops.groups import members


class Shift(NamedTuple):
    """What a change of weights does to the answers of one prompt, exactly, with one state and no discount.

    gap: how much better the best answer is than the next. flip: whether the best changes. tv: total variation between the
    soft-optimal policies. sup: largest change of a reward. bound: sup / (2 temperature), which tv does not exceed.
    """

    gap: float
    flip: bool
    tv: float
    sup: float
    bound: float

    @property
    def sensitivity(self) -> float:
        """tv / sup; 0 where no reward changes."""
        return self.tv / self.sup if self.sup else 0.0


def policy_cliff(
    reward_parts: Tensor,
    reward_weights: Tensor,
    signatures: Tensor,
    group_ids: Tensor,
    *,
    temperature: AboveZero = 0.1,
    perturbation: float = 0.05,
    num_perturbations: Positive = 8,
    seed: int = 0,
) -> dict[str, float]:
    """Over the prompts: share with tied best answers, how often the best flips, how far the soft policy moves.

    After arXiv:2507.20150; the diagnostic is ours. reward_parts [B,K], reward_weights [K], the rest [B]. Weights move
    by up to `perturbation` in the largest of them, in random directions. temperature: the entropy coefficient, or the
    coefficient of the divergence to the reference, of the training. cliff/tied counts gaps below `perturbation` between
    answers of different signatures; cliff/bound_excess is the largest tv less its bound, never above 0.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = 2 * torch.rand(num_perturbations, len(reward_weights), generator=generator, dtype=torch.double) - 1
    directions = perturbation * directions / directions.abs().amax(1, keepdim=True)
    shifts: list[list[Shift]] = []
    for rows in members(group_ids):
        parts, said = reward_parts[rows].nan_to_num(0.0).cpu(), signatures[rows].cpu()
        if len(said.unique()) > 1:
            weights = reward_weights.double().cpu()
            shifts.append([shift(parts, weights, weights + d, said, temperature=temperature) for d in directions])
    every = [s for prompt in shifts for s in prompt]
    if not every:
        return {}
    return {
        "cliff/tied": sum(prompt[0].gap < perturbation for prompt in shifts) / len(shifts),
        "cliff/flips": sum(s.flip for s in every) / len(every),
        "cliff/tv": sum(s.tv for s in every) / len(every),
        "cliff/sensitivity": sum(s.sensitivity for s in every) / len(every),
        "cliff/bound_excess": max(s.tv - s.bound for s in every),
    }


def shift(parts: Tensor, weights: Tensor, moved: Tensor, signatures: Tensor, *, temperature: float) -> Shift:
    """The answers of one prompt, parts [M,K] and signatures [M], under `weights` and under `moved` [K].

    The soft-optimal policy of a set of answers, each as probable as the others before, is softmax(reward / temperature).
    """
    before, after = (parts.double() @ w.double() for w in (weights, moved))
    best = before.argmax()
    others = before[signatures != signatures[best]]
    sup = float((after - before).abs().max())
    tv = 0.5 * ((before / temperature).softmax(0) - (after / temperature).softmax(0)).abs().sum()
    return Shift(
        gap=float(before[best] - others.max()) if len(others) else float("inf"),
        flip=bool(signatures[after.argmax()] != signatures[best]),
        tv=float(tv),
        sup=sup,
        bound=sup / (2 * temperature),
    )
