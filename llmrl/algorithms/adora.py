"""Advantage dynamics via online rollout adaptation."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal

from llmrl.algorithm import Algorithm
from llmrl.algorithms.grpo import grpo
from llmrl.config import NotNegative, Positive
from llmrl.shaping import adora as shaping


def adora(
    *,
    mode: Literal["attenuate", "amplify"] = "attenuate",
    threshold: float = 0.5,
    kl_coef: NotNegative = 0.0,
    epochs: Positive = 1,
    minibatches: Positive = 1,
) -> Algorithm:
    """GRPO that listens less to prompts on which thinking longer did not help, or more to those where it did.

    arXiv:2602.10019. attenuate is what the released codes do, amplify what the paper describes for language models; a
    rollout is right when its reward is above the threshold.
    """
    weighed = partial(shaping.adora, mode=mode, threshold=threshold)
    return replace(grpo(kl_coef=kl_coef, epochs=epochs, minibatches=minibatches), shaping=(weighed,))
