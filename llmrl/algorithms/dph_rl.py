"""Diversity-preserving hybrid RL."""

from __future__ import annotations

from functools import partial
from typing import Literal

from llmrl.advantages.group import standardised
from llmrl.algorithm import Algorithm, Before, Extra
from llmrl.config import AboveZero, NotNegative, Positive
from llmrl.objectives.policy import clipped_surrogate
from llmrl.regularizers.dph import dph, dph_fresh
from llmrl.selections.prompts import dph_split

FRESH_SHARE = 0.1  # of the micro-batches that the released code puts the other half of the JS on


def dph_rl(
    *,
    divergence: Literal["forward_kl", "js", "alpha", "js_definition"] = "forward_kl",
    eta: NotNegative = 0.01,
    alpha: float = 0.2,
    num_samples: Positive = 8,
    clip_low: NotNegative = 0.2,
    clip_high: NotNegative = 0.28,
    dual_clip: AboveZero | None = 3.0,
    epochs: Positive = 1,
    minibatches: Positive = 1,
) -> Algorithm:
    """Policy gradient on what the first policy cannot do yet, its own stored answers on what it can (arXiv:2509.07430).

    num_samples: answers of the first policy a prompt; where all are right the prompt is not sampled again. eta: weight of
    the divergence; the paper has 0.01 to 0.05 for the forward KL and 0.05 to 0.2 for the JS. The two parts are averaged
    each over its own tokens. js_definition alone needs a reference policy beside the trained one.
    """
    fresh = (partial(dph_fresh, kl_coef=FRESH_SHARE * eta),) if divergence == "js_definition" else ()
    return Algorithm(
        before=Before(num_samples=num_samples),
        select=(dph_split,),
        advantage=standardised,
        objective=(partial(clipped_surrogate, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip),),
        regularizers=fresh,
        extra=(Extra((partial(dph, divergence=divergence, alpha=alpha),), source="reference", coefficient=eta),),
        reduce="token_mean",
        epochs=epochs,
        minibatches=minibatches,
    )
