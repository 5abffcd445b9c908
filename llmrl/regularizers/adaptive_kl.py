"""A penalty whose coefficient follows the distance that was measured."""

from __future__ import annotations

from torch import Tensor

from llmrl.batch import Loss
from llmrl.config import AboveZero, NotNegative
from llmrl.ops import kl
from llmrl.ops.masked import masked_sum


class AdaptiveKl:
    """kl_coef · k2, with kl_coef steered so that the KL of an answer stays near `target` (arXiv:1909.08593).

    After each optimizer step of n rows: kl_coef ← kl_coef (1 + clip(KL / target - 1, ±0.2) n / horizon), KL the mean over
    rows of Σ_t (logprobs - ref_logprobs). The paper has the penalty in the reward; in the loss k2 has its gradient.
    """

    def __init__(self, *, kl_coef: NotNegative = 0.1, target: float = 6.0, horizon: AboveZero = 10_000.0):
        self.kl_coef, self.target, self.horizon = kl_coef, target, horizon

    def init(self) -> dict[str, float]:
        return {"kl_coef": self.kl_coef}

    def apply(self, state: dict[str, float], logprobs: Tensor, ref_logprobs: Tensor, loss_mask: Tensor) -> Loss:
        distance = masked_sum(kl.k1(logprobs, ref_logprobs).detach(), loss_mask, dim=1)
        coefficient = distance.new_full(distance.shape, state["kl_coef"])
        stats = {"kl/answer": distance, "kl/coefficient": coefficient}
        return Loss(state["kl_coef"] * kl.k2(logprobs, ref_logprobs), stats=stats)

    def observe(self, state: dict[str, float], means: dict[str, float]) -> dict[str, float]:
        if "kl/answer" not in means:  # no token counted
            return state
        error = min(max(means["kl/answer"] / self.target - 1, -0.2), 0.2)
        return {"kl_coef": state["kl_coef"] * (1 + error * means["rows"] / self.horizon)}
