"""A batch of a method made as the loop makes it, and the gradients that an update of a real policy takes from it."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from inputs import MAX_LENGTH, batch
from torch import Tensor

from llmrl.algorithm import Algorithm, build, passes, required
from llmrl.batch import VOCABULARY, Batch, base_name, sources
from llmrl.combiners.weighted_sum import weighted_sum
from llmrl.policy.model import Policy
from llmrl.training.credit import assign_credit, needs_passes, reward
from llmrl.training.passes import run_pass
from llmrl.training.ranks import Ranks
from llmrl.training.update import Settings, Updater

WHOLE = 10**6  # tokens a micro-batch: everything at once


class Recorder(torch.optim.SGD):
    """Plain descent that keeps the gradient of each step, by order of the parameters."""

    def __init__(self, policy: Policy):
        super().__init__([p for _, p in policy.trainable()], lr=0.0)
        self.taken: list[list[Tensor]] = []

    def step(self):
        self.taken.append([p.grad.clone() for group in self.param_groups for p in group["params"]])
        super().step()


def method(name: str, **changes) -> Algorithm:
    """The method with its defaults and one update a batch, unless changed."""
    return replace(build({"name": name}), **{"epochs": 1, "minibatches": 1} | changes)


def prepared(algorithm: Algorithm, policy: Policy, reference: Policy, given: Batch | None = None) -> Batch:
    """A batch in which the passes, the reward and the credit are what the loop would make of it."""
    given = given or batch()
    known = {n: a for n, a in given.arrays.items() if VOCABULARY[n].source in ("rollout", "score")}
    wanted, plan = sources(required(algorithm)), {p.name for p in passes(algorithm)}
    paired = any(n != base_name(n) for n in required(algorithm))
    out = Batch(given.samples, known, given.pairs if paired else None, given.constants)
    combine = algorithm.combine or (weighted_sum,)
    ranks = Ranks()
    reward(out, [part for part in combine if not needs_passes(part)], ranks)
    if "old" in plan:
        got = run_pass(policy, out, WHOLE, entropy="old_entropy" in wanted, values="old_values" in wanted)
        out.arrays |= {f"old_{n}": array for n, array in got.items()}
    if "ref" in plan:
        out.arrays["ref_logprobs"] = run_pass(reference, out, WHOLE)["logprobs"]
    reward(out, [part for part in combine if needs_passes(part)], ranks)
    assign_credit(out, algorithm, ranks)
    return out


def updated(
    policy: Policy,
    given: Batch,
    algorithm: Algorithm,
    budget: int = WHOLE,
    rate: float = 0.0,
    max_norm: float = math.inf,
) -> tuple[list[list[Tensor]], dict[str, float]]:
    """(gradients of each optimizer step, metrics) of an update with `budget` tokens a micro-batch."""
    recorder = Recorder(policy)
    updater = Updater(policy, recorder, Ranks(), Settings(budget, MAX_LENGTH, max_norm, math.inf))
    metrics = updater.update(given, algorithm, learning_rate=rate, seed=0)
    return recorder.taken, metrics
