"""Policy optimisation by a second-order Taylor expansion."""

from __future__ import annotations

from functools import partial

from llmrl.advantages.group import standardised
from llmrl.algorithm import Algorithm
from llmrl.config import NotNegative, Positive
from llmrl.objectives.taypo import taypo2


def taypo(
    *,
    eta: NotNegative = 1.0,
    deviation_clip: NotNegative | None = 0.3,
    epochs: Positive = 1,
    minibatches: Positive = 4,
) -> Algorithm:
    """The ratio's deviations at each token and at each pair of tokens, on GRPO's credit (arXiv:2003.06259).

    eta weighs the pairs. They only matter once the policy has moved: after the first update of a batch.
    """
    return Algorithm(
        advantage=standardised,
        objective=(partial(taypo2, eta=eta, deviation_clip=deviation_clip),),
        epochs=epochs,
        minibatches=minibatches,
    )
