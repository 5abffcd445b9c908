"""Rewards on a scale that does not drift with the reward model's."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from llmrl.config import NotNegative


class PpoMaxNormalisation:
    """clip((r - mean) / std, ±reward_clip) by the moments of all rewards so far, this batch included (arXiv:2307.04964).

    Section 5 there. The moments of a batch are merged before they are used; std has n-1 and is 1 while there are fewer
    than two rewards or none differs. The released script only divides, without a clip: centred false, reward_clip null.
    """

    def __init__(self, *, reward_clip: NotNegative | None = 0.3, centred: bool = True):
        self.reward_clip = reward_clip
        self.centred = centred

    def init(self) -> dict[str, Any]:
        return {"mean": 0.0, "variance": 1.0, "count": 0}

    def apply(self, state: dict[str, Any], rewards: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """(rewards [B], state with the moments of this batch merged in)."""
        if not len(rewards):
            return rewards, state
        state = merged(state, rewards)
        squares = state["variance"] * state["count"]
        std = math.sqrt(squares / (state["count"] - 1)) if state["count"] > 1 and squares > 0 else 1.0
        scaled = (rewards - state["mean"] if self.centred else rewards) / std
        return scaled if self.reward_clip is None else scaled.clamp(-self.reward_clip, self.reward_clip), state


def merged(state: dict[str, Any], rewards: Tensor) -> dict[str, Any]:
    """The population's moments of what the state has seen and the rewards together (Chan et al. 1983)."""
    batch, n = rewards.double(), len(rewards)
    total = state["count"] + n
    shift = float(batch.mean()) - state["mean"]
    squares = state["variance"] * state["count"] + float(batch.var(correction=0)) * n
    squares += shift**2 * state["count"] * n / total
    return {"mean": state["mean"] + shift * n / total, "variance": squares / total, "count": total}
