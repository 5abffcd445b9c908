"""Trust-region policy optimisation: a natural-gradient step that a line search makes sure of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llmrl.config import AboveZero, NotNegative, Positive
from llmrl.errors import TrainingError
from llmrl.ops.solve import conjugate_gradient
from llmrl.updates.problem import Problem

DIVERGENCE = "kl_old"  # the regularizer that measures the region; every other part of the loss is the surrogate
MIN_IMPROVEMENT = 0.1  # of what the gradient promises
HALVINGS = 10
REACH = (
    0.1  # of sqrt(epsilon) · |parameters|: further loses curvature along the gradient, nearer drowns in fp32's rounding
)


class Trial(NamedTuple):
    """What the line search came to: the share of the step that is taken, 0 for none, and what was measured there."""

    share: float
    surrogate: float
    divergence: float


def natural_step(
    gradient: Tensor, product: Callable[[Tensor], Tensor], *, max_kl: float, iterations: Positive = 10
) -> Tensor:
    """The step [n] down the natural gradient whose KL is max_kl, to second order (arXiv:1502.05477, appendix C).

    x = F⁻¹ (-gradient) by conjugate gradients, product(v) = F v; step = x sqrt(2 max_kl / xᵀF x). 0 for a gradient of 0.
    """
    x = conjugate_gradient(product, -gradient, iterations=iterations)
    curvature = x @ product(x) if bool(x.any()) else torch.zeros(())
    return x * (2 * max_kl / curvature).sqrt() if curvature > 0 else torch.zeros_like(gradient)


def line_search(evaluate: Callable[[float], tuple[float, float]], expected: float, *, max_kl: float) -> Trial:
    """The first of the shares 1, ½, ¼, ... of a step that keeps what it promises.

    evaluate(share) -> (surrogate, divergence); expected: by how much the whole step lowers the surrogate to first order.
    Kept where the surrogate falls by more than a tenth of share · expected and the divergence is at most max_kl.
    """
    start, divergence = evaluate(0.0)
    for halving in range(HALVINGS if expected > 0 else 0):
        share = 0.5**halving
        trial = Trial(share, *evaluate(share))
        fallen = start - trial.surrogate
        if fallen > 0 and fallen > MIN_IMPROVEMENT * share * expected and trial.divergence <= max_kl:
            return trial
    return Trial(0.0, start, divergence)


class Trpo:
    """One natural-gradient step a mini-batch, inside KL(old || new) <= max_kl (arXiv:1502.05477).

    Needs the regularizer kl_old, whose mean it keeps within max_kl: F is its curvature, plus `damping`, by differences of
    its gradient. The optimizer is not used. Where no share of the step passes the line search, nothing moves. Several
    vectors as large as the trained parameters live at once: train adapters, or a part of the model, with it. The paper's
    line search looks at the surrogate and the KL alone; a tenth of the promise is asked for as in the authors' code.
    """

    whole = True  # it works on one vector of all parameters

    def __init__(self, *, max_kl: AboveZero = 0.01, damping: NotNegative = 0.1, iterations: Positive = 10):
        self.max_kl, self.damping, self.iterations = max_kl, damping, iterations

    def init(self) -> dict[str, Any]:
        return {}

    def apply(self, state: dict[str, Any], problem: Problem) -> tuple[dict[str, float], dict[str, Any]]:
        norms, trials = [], []
        for epoch in range(problem.epochs):
            for minibatch in problem.minibatches(epoch):
                norm, trial = self._step(problem, minibatch)
                norms.append(norm)
                trials.append(trial)
        count = max(len(trials), 1)
        told = {
            "gradient/norm": sum(norms) / count,
            "update/steps": sum(trial.share > 0 for trial in trials),
            "trust/share": sum(trial.share for trial in trials) / count,
            "trust/kl": max((trial.divergence for trial in trials), default=0.0),
        }
        return told, state

    @torch.no_grad()
    def _step(self, problem: Problem, minibatch: Any) -> tuple[float, Trial]:
        start = _read(problem)
        slope = _gradient(problem, minibatch) - _gradient(problem, minibatch, {DIVERGENCE})
        if not bool(slope.isfinite().all()):
            raise TrainingError(
                "the gradient of the surrogate is not finite; look at the last rollouts of the run for a score out of range."
            )
        reach = REACH * start.new_tensor(torch.finfo(start.dtype).eps).sqrt() * (1 + start.norm())

        def product(v: Tensor) -> Tensor:
            if not bool(v.any()):
                return torch.zeros_like(v)
            small = v * (reach / v.norm())
            sides = []
            for place in (start + small, start - small):
                _write(problem, place)
                sides.append(_gradient(problem, minibatch, {DIVERGENCE}))
            return (sides[0] - sides[1]) * (v.norm() / (2 * reach)) + self.damping * v

        def evaluate(share: float) -> tuple[float, float]:
            _write(problem, start + share * step)
            divergence = problem.measure(minibatch, {DIVERGENCE})["loss"]
            return problem.measure(minibatch)["loss"] - divergence, divergence

        step = natural_step(slope, product, max_kl=self.max_kl, iterations=self.iterations)
        trial = line_search(evaluate, float(-slope @ step), max_kl=self.max_kl)
        _write(problem, start + trial.share * step if trial.share else start)
        return float(slope.norm()), trial


def _gradient(problem: Problem, minibatch: Any, only: set[str] | None = None) -> Tensor:
    problem.zero()
    with torch.enable_grad():
        problem.gradient(minibatch, only)
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in problem.parameters]
    flat = torch.cat([part.flatten() for part in parts])
    problem.zero()
    return flat


def _read(problem: Problem) -> Tensor:
    return torch.cat([p.detach().flatten() for p in problem.parameters])


def _write(problem: Problem, values: Tensor) -> None:
    place = 0
    for p in problem.parameters:
        p.copy_(values[place : place + p.numel()].view_as(p))
        place += p.numel()
