"""A weight for each prompt by what its rollouts of this step show."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from llmrl.config import Share
from llmrl.ops.groups import members


def adora(
    advantages: Tensor,
    rewards: Tensor,
    lengths: Tensor,
    truncated: Tensor,
    group_ids: Tensor,
    *,
    mode: Literal["attenuate", "amplify"] = "attenuate",
    threshold: float = 0.5,
    attenuation: float = 0.1,
    amplification: float = 2.0,
    max_success_rate: Share = 0.5,
) -> Tensor:
    """Advantages times one weight a prompt (ADORA, arXiv:2602.10019); advantages [B,T], the rest [B].

    A prompt shows a length advantage when its longest right rollout (reward > threshold) is longer than the mean of the
    wrong ones, those cut by the limit left out; without a wrong one left it does, without a right one it does not.
    attenuate: `attenuation` for prompts without one, as both released codes have it; they disagree where nothing is right
    or no wrong one is left, and this is the one for language models. amplify, from the paper's text: `amplification` for
    prompts with one of which at most `max_success_rate` are right.
    """
    weights = torch.ones_like(rewards)
    for rows in members(group_ids):
        right = rewards[rows] > threshold
        wrong = ~right & ~truncated[rows]
        length = lengths[rows].float()
        longer = bool(right.any()) and (not wrong.any() or bool(length[right].max() > length[wrong].mean()))
        if mode == "attenuate":
            weights[rows] = 1.0 if longer else attenuation
        elif longer and float(right.float().mean()) <= max_success_rate:
            weights[rows] = amplification
    return advantages * weights[:, None]
