"""FixPO: after the ordinary epochs, steps on the divergence alone until no token is further away than allowed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from llmrl.config import Natural
from llmrl.updates.problem import Problem

PENALTY = ("FixpoPenalty", "SampledFixpoPenalty")  # the one that is there is minimised in the second phase


class FixUp(NamedTuple):
    """Steps made, whether a whole sweep found every mini-batch within the bound, the largest divergence of that sweep."""

    steps: int
    done: bool
    largest: float


def fix_up(
    minibatches: Sequence[Any],
    divergence: Callable[[Any], float],
    step: Callable[[Any], None],
    *,
    bound: float,
    max_steps: int,
) -> FixUp:
    """Sweeps that give a step to every mini-batch past the bound, until one finds none or max_steps are made.

    The second phase of arXiv:2312.05405, algorithm 1.
    """
    made = 0
    while True:
        largest = 0.0
        for minibatch in minibatches:
            distance = divergence(minibatch)
            largest = max(largest, distance)
            if distance > bound:
                if made == max_steps:
                    return FixUp(made, False, largest)
                step(minibatch)
                made += 1
        if largest <= bound:
            return FixUp(made, True, largest)


class Fixpo:
    """Ordinary epochs, and after each (or the last) a phase that brings every token back inside `bound` (arXiv:2312.05405).

    Needs the regularizer `fixpo`, FixpoPenalty, whose statistic is the exact KL(old || new) of a token, or `fixpo_sampled`
    and its estimate. The guarantee is on the largest of a counted token of the batch, or with measure `mean` on the mean of
    each mini-batch; with the sampled one it is on the estimate alone. When max_steps
    do not suffice the parameters go back to where they last were inside; the authors' code goes on for ever.
    """

    writes = True  # parameters, past the optimizer

    def __init__(
        self,
        *,
        bound: float = 0.2,
        measure: Literal["max", "mean"] = "max",
        after: Literal["every_epoch", "last_epoch"] = "every_epoch",
        max_steps: Natural = 100,
    ):
        self.bound, self.measure, self.after, self.max_steps = bound, measure, after, max_steps

    def init(self) -> dict[str, Any]:
        return {}

    def apply(self, state: dict[str, Any], problem: Problem) -> tuple[dict[str, float], dict[str, Any]]:
        statistic = "fixpo/kl/max" if self.measure == "max" else "fixpo/kl"

        def divergence(minibatch: Any) -> float:
            return problem.measure(minibatch, PENALTY).get(statistic, 0.0)  # without a counted token there is none

        def step(minibatch: Any) -> None:
            problem.gradient(minibatch, PENALTY)
            problem.step()

        inside = _snapshot(problem)
        told = {"fixpo/steps": 0, "fixpo/restored": 0, "trust/kl": 0.0}
        for epoch in range(problem.epochs):
            minibatches = problem.minibatches(epoch)
            for minibatch in minibatches:
                problem.gradient(minibatch)
                problem.step()
            if self.after == "last_epoch" and epoch + 1 < problem.epochs:
                continue
            left = self.max_steps - told["fixpo/steps"]
            outcome = fix_up(minibatches, divergence, step, bound=self.bound, max_steps=left)
            told["fixpo/steps"] += outcome.steps
            if outcome.done:
                inside, told["trust/kl"] = _snapshot(problem), outcome.largest
            else:
                _restore(problem, inside)
                told["fixpo/restored"] += 1
        return told, state


@torch.no_grad()
def _snapshot(problem: Problem) -> list[Tensor]:
    return [p.detach().clone() for p in problem.parameters]


@torch.no_grad()
def _restore(problem: Problem, values: list[Tensor]) -> None:
    for p, value in zip(problem.parameters, values, strict=True):
        p.copy_(value)
