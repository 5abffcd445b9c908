"""A batch of a method made as the loop makes it, and the gradients that an update of a real policy takes from it."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from inputs import FITTED, MAX_LENGTH, batch
from torch import Tensor

from llmrl.algorithm import Algorithm, Extra
from llmrl.batch import VOCABULARY, Batch, base_name, sources
from llmrl.catalog import name_of
from llmrl.combiners.weighted_sum import weighted_sum
from llmrl.composition import build
from llmrl.ops.masked import last_counted
from llmrl.plan import passes, required
from llmrl.policy.forward import ACTION_VALUES
from llmrl.policy.model import Policy
from llmrl.training.credit import assign_credit, early_and_late, reward, selected
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
    """The method with its defaults and one optimizer step a batch, unless changed; rules of their own have own tests."""
    return replace(
        build({"name": name} | FITTED.get(name, {})), **{"epochs": 1, "minibatches": 1, "update": None} | changes
    )


def prepared(algorithm: Algorithm, policy: Policy, reference: Policy, given: Batch | None = None) -> Batch:
    """A batch in which the passes, the reward, the selections and the credit are what the loop would make of it."""
    given = given or batch()
    sourced = ("rollout", "score", "loop")
    known = {n: a for n, a in given.arrays.items() if VOCABULARY[n].source in sourced}
    known["weights"] = torch.ones(given.arrays["loss_mask"].shape)
    known.pop("staleness")  # all rows are of the weights in training
    wanted, plan = sources(required(algorithm)), {array for p in passes(algorithm) for array in p.arrays}
    paired = any(n != base_name(n) for n in required(algorithm))
    out = Batch(given.samples, known, given.pairs if paired else None, given.constants)
    if "rollout_logprobs" in wanted:  # of an engine whose error is that of the random arrays
        error = given.arrays["rollout_logprobs"] - given.arrays["logprobs"]
        out.arrays["rollout_logprobs"] = run_pass(policy, out, WHOLE)["logprobs"] + error
    combine = algorithm.combine or (weighted_sum,)
    ranks, states = Ranks(), {key: part.init() for key, part in algorithm.remembering().items()}
    early, late = early_and_late(combine)
    reward(out, early, ranks, states)
    if "greedy_rewards" in wanted:
        out.arrays["greedy_rewards"] = given.arrays["greedy_rewards"]
    selected(out, [part for part in algorithm.select if part_keeps_rows(part)], ranks, states)
    if any(name.startswith("old_") and VOCABULARY[name].source == "old" for name in plan):
        kept = "old" if "old_kl" in wanted else None
        asked = {name: f"old_{name}" in plan for name in ("entropy", "values")}
        asked["action_values"] = any(f"old_{name}" in plan for name in ACTION_VALUES)
        got = run_pass(policy, out, WHOLE, keep_as=kept, **asked)
        out.arrays |= {f"old_{n}": array for n, array in got.items()}
    if "ref_logprobs" in plan:
        kept = "ref" if "ref_kl" in wanted else None
        out.arrays["ref_logprobs"] = run_pass(reference, out, WHOLE, keep_as=kept)["logprobs"]
    reward(out, late, ranks, states)
    assign_credit(out, algorithm, ranks, states)
    selected(out, [part for part in algorithm.select if part_keeps_rows(part)], ranks, states, at="credited")
    return out


def part_keeps_rows(part) -> bool:
    """Whether a selection only weighs rows or tokens: what drops rows has tests of its own."""
    return name_of(part) in ("red_drop", "red_weight", "drop_truncated")


def second_batches(algorithm: Algorithm) -> list[tuple[Extra, Batch]]:
    """Three rows as a batch of stored answers, with what such a batch holds."""
    out = []
    for extra in algorithm.extra:
        rows = batch().take([1, 3, 6])
        mask = rows.arrays["loss_mask"]
        names = ("loss_mask", "lengths", "group_ids", "temperatures", "truncated")
        arrays = {n: rows.arrays[n] for n in names} | {
            "rewards": torch.tensor([1.0, 0.0, 1.0]),
            "token_rewards": torch.tensor([1.0, 0.0, 1.0])[:, None] * last_counted(mask),
            "advantages": torch.tensor([1.0, 0.0, 1.0])[:, None] * mask,
            "ref_logprobs": -0.5 - torch.arange(mask.numel()).reshape(mask.shape) % 7 / 7,
        }
        out.append((extra, Batch(rows.samples, arrays, None, rows.constants)))
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
    if algorithm.perturb is not None and policy.module.noise is None:  # as a run does when it loads the policy
        policy.module.noise = algorithm.perturb.apply(policy.model)
    recorder = Recorder(policy)
    updater = Updater(policy, recorder, Ranks(), Settings(budget, MAX_LENGTH, max_norm, math.inf))
    extras = second_batches(algorithm) if (given.arrays["lengths"] > 0).any() else []
    metrics = updater.update(given, algorithm, learning_rate=rate, seed=0, extras=extras)
    return recorder.taken, metrics
