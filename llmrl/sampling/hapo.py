"""A temperature for each token, by how uncertain the policy is there."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from llmrl.config import NotNegative, Share
from llmrl.errors import RolloutError
from llmrl.ops.entropy_scores import SMALLEST, Scale, scale_of, scores
from llmrl.types import Rollout

State = dict[str, Any]


class HapoTemperature:
    """T_t = T · (1 + tau · h_t): warmer where the policy doubts, colder where it is certain (HAPO, arXiv:2509.16591).

    h in [-1, 1] is the log-entropy at the token before any temperature, about the `quantile` of the batch sampled
    before and over that batch's extremes; T is the recipe's temperature, which holds alone in the first batch. The state
    is that batch's scale. The released code has h >= 0 for certain tokens too, and so heats them.
    """

    def __init__(self, *, tau: NotNegative = 0.05, quantile: Share = 0.8):
        self.tau = tau
        self.quantile = quantile

    def init(self) -> State:
        return {}

    def temperatures(self, state: State, entropies: Tensor) -> Tensor:
        """What the temperature is multiplied by at entropies [n] of the untempered distribution."""
        return 1 + self.tau * scores(entropies, Scale(**state)) if state else torch.ones_like(entropies)

    def apply(self, state: State, rollouts: Sequence[Rollout]) -> tuple[None, State]:
        """The scale of the batch just sampled, of all ranks, with what is not trained on; none when nothing differs.

        Raises RolloutError when the engine has reported no entropies.
        """
        sampled = [r for r in rollouts if not r.probe]
        if any(r.entropies is None for r in sampled):
            raise RolloutError(
                "hapo_temperature: the engine reported no entropies. Sample with rollout.engine: vllm or transformers and "
                "a rollout.temperature above 0."
            )
        written = [r.loss_mask or (True,) * len(r.ids) for r in sampled]
        found = [h for r, own in zip(sampled, written, strict=True) for h in compress(r.entropies, own)]
        if not found:
            return None, state
        scale = scale_of(torch.tensor(found), self.quantile)
        return None, scale._asdict() if scale.spread > SMALLEST else {}
