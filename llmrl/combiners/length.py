"""Rewards that depend on how long an answer is. All come after the part that makes `rewards`, and read [B]."""

from __future__ import annotations

import torch
from torch import Tensor

from llmrl.ops import lengths as curves
from llmrl.ops.groups import group_max


def overlong_penalty(rewards: Tensor, lengths: Tensor, *, max_tokens: int = 20480, buffer: int = 4096) -> Tensor:
    """r + DAPO's soft penalty for long answers, 0 to -1 (arXiv:2503.14476, eq. 13).

    0 up to max_tokens - buffer tokens, then falling in a line to -1 at max_tokens, and -1 beyond, where verl goes on
    falling. Defaults are the paper's: 16,384 expected tokens and 4,096 more.
    """
    penalties = [curves.overlong(n, max_tokens=max_tokens, buffer=buffer) for n in lengths.tolist()]
    return rewards + rewards.new_tensor(penalties)


def kimi_length(
    rewards: Tensor, lengths: Tensor, group_ids: Tensor, *, length_coef: float = 1.0, threshold: float = 0.5
) -> Tensor:
    """r + length_coef · λ, λ = 0.5 - (L - min) / (max - min) in the group; a wrong answer gets min(0, λ) (arXiv:2501.12599).

    An answer is right from `threshold` on. A group of equal lengths gets nothing.
    """
    counts = lengths.to(rewards.dtype)
    longest, shortest = group_max(counts, group_ids), -group_max(-counts, group_ids)
    place = 0.5 - (counts - shortest) / (longest - shortest).clamp(min=1)
    place = torch.where(rewards >= threshold, place, place.clamp(max=0))
    return rewards + length_coef * torch.where(longest > shortest, place, torch.zeros_like(place))


def l1_length(rewards: Tensor, lengths: Tensor, *, target: int = 1024, length_coef: float = 0.0003) -> Tensor:
    """r - length_coef · |L - target| (LCPO-Exact, arXiv:2503.04697, eq. 1), one target for all prompts."""
    return rewards - length_coef * (lengths - target).abs()


def cosine_length(
    rewards: Tensor,
    lengths: Tensor,
    truncated: Tensor,
    *,
    max_tokens: int = 14336,
    right_short: float = 2.0,
    right_long: float = 1.0,
    wrong_short: float = -10.0,
    wrong_long: float = 0.0,
    exceeded: float = -10.0,
    threshold: float = 0.5,
) -> Tensor:
    """The cosine reward in the place of r: right answers earn more when short, wrong ones lose less when long.

    Half a cosine wave from *_short at no tokens to *_long at max_tokens (arXiv:2502.03373, section 4.2); `exceeded` from
    max_tokens on and for an answer cut by the token limit. Right is what scores at least `threshold`.
    """
    found = []
    for right, length, cut in zip((rewards >= threshold).tolist(), lengths.tolist(), truncated.tolist(), strict=True):
        at_zero, at_max = (right_short, right_long) if right else (wrong_short, wrong_long)
        wave = curves.cosine(length, max_tokens=max_tokens, at_zero=at_zero, at_max=at_max)
        found.append(exceeded if cut or length >= max_tokens else wave)
    return rewards.new_tensor(found)
