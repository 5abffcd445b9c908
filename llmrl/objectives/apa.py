"""Fits to a policy tilted by its advantages: by squared error of log-probabilities, or by weighted likelihood."""

from __future__ import annotations

from torch import Tensor

from llmrl.batch import Loss
from llmrl.config import AboveZero


def apa(logprobs: Tensor, ref_logprobs: Tensor, advantages: Tensor, *, temperature: AboveZero = 1.0) -> Loss:
    """(logprobs - A / temperature - ref_logprobs)²: the squared distance to pi_ref exp(A / temperature) (arXiv:2306.02231).

    [B,T] each; the released code's coefficient is 1 / temperature, and the log-probabilities that it calls old are the
    initial policy's. The target does not add up to 1, so that with large |A| / temperature the optimum is flatter than the
    tilt; the advantage `opmd` with the baseline log_mean_exp mends that, the method's soft_baseline. A = 0 pulls towards
    the reference.
    """
    return Loss((logprobs - advantages / temperature - ref_logprobs) ** 2)


def awr(
    logprobs: Tensor, advantages: Tensor, *, temperature: AboveZero = 1.0, max_weight: AboveZero | None = None
) -> Loss:
    """-exp(A / temperature) logprobs, the weight at most max_weight (advantage-weighted regression, arXiv:1910.00177, eq. 5).

    [B,T] each. A = 0 is plain likelihood: every sample is imitated, the better ones more.
    """
    weight = (advantages / temperature).exp()
    return Loss(-(weight if max_weight is None else weight.clamp(max=max_weight)) * logprobs)


apa.needs_zero_advantage_rows = True  # they are drawn to the reference
awr.needs_zero_advantage_rows = True  # they are imitated
