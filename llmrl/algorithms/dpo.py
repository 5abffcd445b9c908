"""Direct preference optimisation."""

from __future__ import annotations

from functools import partial

from llmrl.algorithm import Algorithm
from llmrl.config import NotNegative
from llmrl.objectives import preference


def dpo(*, beta: NotNegative = 0.1) -> Algorithm:
    """Pairs, a frozen reference, no reward model (arXiv:2305.18290)."""
    return Algorithm(objective=(partial(preference.dpo, beta=beta),))
