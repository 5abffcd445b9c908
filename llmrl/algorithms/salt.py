"""Step-level advantages from the graph of a prompt's episodes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal

from llmrl.advantages import salt as advantages
from llmrl.algorithm import Algorithm
from llmrl.algorithms.grpo import grpo
from llmrl.config import NotNegative, Positive


def salt(
    *,
    history: int | None = None,
    base: Literal["grpo", "rloo"] = "grpo",
    kl_coef: NotNegative = 0.0,
    epochs: Positive = 1,
    minibatches: Positive = 1,
) -> Algorithm:
    """GRPO or RLOO in which a step that several episodes took earns the mean of what they earned (arXiv:2510.20022).

    history: how many earlier steps have to agree, too; none given: all of them.
    """
    rest = grpo(kl_coef=kl_coef, epochs=epochs, minibatches=minibatches)
    return replace(rest, advantage=partial(advantages.salt, history=history, base=base))
