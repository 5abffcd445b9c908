"""Feedback-conditional policy."""

from __future__ import annotations

from typing import Literal

from llmrl.algorithm import Algorithm
from llmrl.conditions.feedback import Feedback
from llmrl.config import Positive
from llmrl.objectives.likelihood import likelihood
from llmrl.selections.contrast import one_right_one_wrong


def fcp(*, stage: Literal["offline", "bootstrap"] = "bootstrap", minibatches: Positive = 1) -> Algorithm:
    """Likelihood of each answer given the verbal feedback it earned; the score never enters the loss (arXiv:2509.22638).

    stage 'offline': sample without a condition, keep one right and one wrong answer a prompt (section 3.1 there).
    stage 'bootstrap': sample under positive feedback, then train under the fresh feedback (section 3.2 there).
    """
    offline = stage == "offline"
    return Algorithm(
        objective=(likelihood,),
        condition=Feedback(sample_under="nothing" if offline else "positive"),
        select=(one_right_one_wrong,) if offline else (),
        minibatches=minibatches,
    )
