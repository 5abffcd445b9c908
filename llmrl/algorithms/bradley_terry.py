"""A reward model from pairs."""

from __future__ import annotations

from functools import partial

from llmrl.algorithm import Algorithm
from llmrl.config import NotNegative, Positive
from llmrl.objectives import bradley_terry as objectives


def bradley_terry(*, centre_coef: NotNegative = 0.0, minibatches: Positive = 1) -> Algorithm:
    """A scalar reward under which the chosen answer beats the rejected one (arXiv:2203.02155, section 3.5).

    A bias-free head on the state after an answer's last token; the model is exported as a sequence classifier.
    """
    return Algorithm(objective=(partial(objectives.bradley_terry, centre_coef=centre_coef),), minibatches=minibatches)
