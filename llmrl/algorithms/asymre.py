"""Asymmetric REINFORCE."""

from __future__ import annotations

from functools import partial

from llmrl.advantages import rec as advantages
from llmrl.algorithm import Algorithm
from llmrl.objectives.reinforce import reinforce


def asymre(*, shift: float = -0.1) -> Algorithm:
    """REINFORCE with a baseline below the group's mean, which leans on success and bears old rollouts (arXiv:2506.20520)."""
    return Algorithm(advantage=partial(advantages.asymre, shift=shift), objective=(reinforce,), reduce="token_mean")
