"""Estimates of the gradient at a fixed policy: how they scatter, and where their mean points."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.lab.tasks import Task
from benchmarks.lab.trainer import Lab, Steps
from llmrl.algorithm import Algorithm


class Estimates(NamedTuple):
    """One gradient of the logits a batch, [batches, S·V]."""

    each: Tensor

    @property
    def mean(self) -> Tensor:
        return self.each.mean(0)

    @property
    def variance(self) -> float:
        """Summed over the logits."""
        return float(self.each.var(0).sum())

    @property
    def relative_variance(self) -> float:
        """Var / |mean|², the mean's own noise taken off: free of the scale of the credit."""
        return self.variance / float(self.mean.square().sum() - self.variance / len(self.each))


def estimates(
    task: Task, logits: Tensor, algorithm: Algorithm, *, batches: int, seed: int = 0, warm: int = 1, **options
) -> Estimates:
    """Gradients of that many batches of rollouts; the policy stays as it is. warm: batches before that, for memories."""
    lab = Lab(task, logits, algorithm, rate=0.0, seed=seed, **options)
    rows = []
    for number in range(warm + batches):
        batch = lab.credited(lab.collect())
        lab.table.weights.grad = None
        if len(batch):
            Steps(lab, batch, lab.table.logits.detach()).gradient(batch)
        gradient = lab.table.weights.grad
        if number >= warm:
            rows.append(torch.zeros(logits.numel()) if gradient is None else gradient.flatten().clone())
    return Estimates(torch.stack(rows))


def true_gradient(task: Task, logits: Tensor) -> Tensor:
    """[S·V]: of the expected reward, by counting every answer; signed as a loss."""
    table = logits.clone().requires_grad_()
    prompts, tokens = task.answers()
    probability = table.log_softmax(-1)[task.states(prompts, tokens), tokens].sum(1).exp()
    (-(probability * task.reward(prompts, tokens)).sum() / task.prompts).backward()
    return table.grad.flatten()


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))
