"""Dynamic dual-level down-sampling."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal

from llmrl.algorithm import Algorithm
from llmrl.algorithms.grpo import grpo
from llmrl.config import Positive, Share
from llmrl.selections import d3s as selections


def d3s(
    *,
    initial_share: Share = 0.25,
    final_share: Share = 1.0,
    initial_token_share: Share = 0.2,
    final_token_share: Share = 1.0,
    level: Literal["batch", "group"] = "batch",
    epochs: Positive = 1,
    minibatches: Positive = 1,
) -> Algorithm:
    """GRPO on the rollouts that differ most in credit and on their most uncertain tokens (arXiv:2509.22115).

    Shares grow from initial to final over the stage. The paper's numbers are not known: these are ours.
    """
    selection = partial(
        selections.d3s,
        initial_share=initial_share,
        final_share=final_share,
        initial_token_share=initial_token_share,
        final_token_share=final_token_share,
        level=level,
    )
    return replace(grpo(epochs=epochs, minibatches=minibatches), select=(selection,))
