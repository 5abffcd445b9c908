"""The penalty of FixPO, whose coefficient follows the largest divergence of a mini-batch."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from llmrl.batch import Loss
from llmrl.config import NotNegative
from llmrl.ops import kl

MOMENTS = (0.9, 0.999)  # Adam's, as beta is stepped by it
EPSILON = 1e-8


class FixpoPenalty:
    """beta · KL(policy as the updates began || policy), and after each step one of Adam on beta (arXiv:2312.05405, algorithm 1).

    beta's loss is beta (bound - target_coef · KL), KL the largest (or the mean) of a counted token; beta >= 0. So beta
    rises where the KL is past bound / target_coef: it aims at half the bound, which update `fixpo` then enforces.
    """

    def __init__(
        self,
        *,
        bound: float = 0.2,
        target_coef: float = 2.0,
        beta: NotNegative = 1.0,
        beta_learning_rate: float = 0.01,
        measure: Literal["max", "mean"] = "max",
    ):
        self.bound, self.target_coef, self.beta = bound, target_coef, beta
        self.beta_learning_rate, self.measure = beta_learning_rate, measure

    def init(self) -> dict[str, float]:
        return {"beta": self.beta, "first": 0.0, "second": 0.0, "steps": 0}

    def apply(self, state: dict[str, float], old_kl: Tensor) -> Loss:
        beta = old_kl.detach().new_full(old_kl.shape, state["beta"])
        return Loss(state["beta"] * old_kl, stats={"fixpo/kl": old_kl.detach(), "fixpo/beta": beta})

    def observe(self, state: dict[str, float], means: dict[str, float]) -> dict[str, float]:
        statistic = "fixpo/kl/max" if self.measure == "max" else "fixpo/kl"
        if statistic not in means:  # no token counted
            return state
        slope = self.bound - self.target_coef * means[statistic]
        steps = state["steps"] + 1
        first = MOMENTS[0] * state["first"] + (1 - MOMENTS[0]) * slope
        second = MOMENTS[1] * state["second"] + (1 - MOMENTS[1]) * slope**2
        size = math.sqrt(second / (1 - MOMENTS[1] ** steps)) + EPSILON
        beta = state["beta"] - self.beta_learning_rate * first / (1 - MOMENTS[0] ** steps) / size
        return {"beta": max(beta, 0.0), "first": first, "second": second, "steps": steps}


class SampledFixpoPenalty(FixpoPenalty):
    """FixpoPenalty on r - 1 - log r of the sampled token, r = exp(logprobs - old_logprobs), in place of its KL.

    Of tokens drawn from the old policy its mean is KL(old || new) and it is never negative (k3 of `ops.kl`). No pass over
    the vocabulary is needed; what is kept within the bound is then the estimate, not the divergence.
    """

    def apply(self, state: dict[str, float], logprobs: Tensor, old_logprobs: Tensor) -> Loss:
        return super().apply(state, kl.k3(old_logprobs, logprobs))
