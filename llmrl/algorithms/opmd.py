"""Online policy mirror descent."""

from __future__ import annotations

from functools import partial
from typing import Literal

from llmrl.advantages import rec as advantages
from llmrl.algorithm import Algorithm
from llmrl.config import NotNegative
from llmrl.objectives.opmd import opmd_kimi, opmd_pairwise, opmd_simple


def opmd(
    *,
    form: Literal["kimi", "pairwise", "simple"] = "kimi",
    baseline: Literal["mean", "log_mean_exp"] = "mean",
    tau: NotNegative = 1.0,
) -> Algorithm:
    """Centred rewards and a squared pull of each answer to the policy that wrote it (arXiv:2501.12599, arXiv:2509.24203).

    tau: strength of the pull. form pairwise: the squared differences of a prompt's answers, which need no baseline; simple:
    the pull only shortens the step, by 1 / (1 + tau).
    """
    objective = {"kimi": opmd_kimi, "pairwise": opmd_pairwise, "simple": opmd_simple}[form]
    return Algorithm(
        advantage=None if form == "pairwise" else partial(advantages.opmd, baseline=baseline, tau=tau),
        objective=(partial(objective, tau=tau),),
        reduce="token_mean",
    )
