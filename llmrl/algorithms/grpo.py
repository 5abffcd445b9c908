"""Group-relative policy optimisation."""

from __future__ import annotations

from functools import partial

from llmrl.advantages.group import standardised
from llmrl.algorithm import Algorithm
from llmrl.config import NotNegative, Positive
from llmrl.objectives.policy import clipped_surrogate
from llmrl.regularizers.kl import kl_k3


def grpo(
    *,
    clip_low: NotNegative = 0.2,
    clip_high: NotNegative = 0.2,
    kl_coef: NotNegative = 0.0,
    epochs: Positive = 1,
    minibatches: Positive = 1,
) -> Algorithm:
    """Rewards standardised within each prompt's group, no critic (arXiv:2402.03300).

    kl_coef: the paper's 0.04 adds its k3 penalty and with it a reference policy; most runs today leave it at 0.
    """
    return Algorithm(
        advantage=standardised,
        objective=(partial(clipped_surrogate, clip_low=clip_low, clip_high=clip_high),),
        regularizers=(partial(kl_k3, kl_coef=kl_coef),) if kl_coef else (),
        reduce="sequence_mean",
        epochs=epochs,
        minibatches=minibatches,
    )
