"""The ordinary rule: a step of the optimizer for every mini-batch."""

from __future__ import annotations

from typing import Any

from llmrl.updates.problem import Problem


class Epochs:
    """epochs × minibatches steps of the optimizer, each on the gradient of one mini-batch's loss."""

    def init(self) -> dict[str, Any]:
        return {}

    def apply(self, state: dict[str, Any], problem: Problem) -> tuple[dict[str, float], dict[str, Any]]:
        for epoch in range(problem.epochs):
            for minibatch in problem.minibatches(epoch):
                problem.gradient(minibatch)
                problem.step()
        return {}, state
