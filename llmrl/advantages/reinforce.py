"""Credit against a baseline that does not come from siblings."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from llmrl.config import Share


class Reinforce:
    """r less a moving mean of the rewards of past batches (Williams 1992; arXiv:2402.14740, section 2).

    A = r - b; [B] -> [B]. b is 0 before the first batch, then its mean, then decay · b + (1 - decay) · mean of each batch:
    an exponential mean, as old rewards were earned by another policy.
    """

    def __init__(self, *, decay: Share = 0.9):
        self.decay = decay

    def init(self) -> dict[str, Any]:
        return {"mean": None}

    def apply(self, state: dict[str, Any], rewards: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """(advantages [B], state that has seen this batch)."""
        past = state["mean"]
        credit = rewards - (past or 0.0)
        if not len(rewards):
            return credit, state
        now = float(rewards.double().mean())
        return credit, {"mean": now if past is None else self.decay * past + (1 - self.decay) * now}


def remax(rewards: Tensor, greedy_rewards: Tensor) -> Tensor:
    """r less the reward of the greedy answer to the same prompt (ReMax, arXiv:2310.10505, eq. 5); [B] -> [B]."""
    return rewards - greedy_rewards
