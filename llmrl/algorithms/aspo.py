"""Advantage shaping policy optimisation."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from llmrl.algorithm import Algorithm
from llmrl.algorithms.dapo import dapo
from llmrl.config import Positive
from llmrl.shaping import aspo as shaping


def aspo(
    *,
    delta: float = -2.0,
    bound: float = 0.7,
    threshold: float = 0.5,
    epochs: Positive = 1,
    minibatches: Positive = 1,
) -> Algorithm:
    """DAPO that prefers, among right answers, those that call the tool earlier (arXiv:2508.19201).

    data.tool_call opens a call. The credit of a right answer changes by at most the share `bound`, so that the earliest
    call earns more and the latest still earns; -2.5 and 0.9 are the paper's stronger setting.
    """
    nudged = partial(shaping.aspo, delta=delta, bound=bound, threshold=threshold)
    return replace(dapo(), shaping=(nudged,), epochs=epochs, minibatches=minibatches)
