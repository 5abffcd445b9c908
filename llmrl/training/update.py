"""Optimizer steps on one batch: epochs × mini-batches × micro-batches, with the counts of all ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from llmrl import catalog
from llmrl.algorithm import Algorithm, droppable, required
from llmrl.batch import VOCABULARY, Batch, call, sources
from llmrl.errors import TrainingError
from llmrl.ops.reduce import reduce_tokens, reduce_units, row_coefficients
from llmrl.policy.forward import Rows
from llmrl.policy.model import Policy
from llmrl.training import monitors
from llmrl.training.micro_batches import split
from llmrl.training.passes import rows_of, run_pass
from llmrl.training.ranks import Ranks

MONITORED_ROWS = 8  # rows forwarded for the monitor alone, when the update's own rows cannot tell


@dataclass(frozen=True)
class Settings:
    """What an update needs to know besides the batch."""

    tokens_per_micro_batch: int
    max_length: int  # longest answer allowed; the constant of the fixed_length reduction
    max_grad_norm: float
    max_logprob_gap: float


class Updater:
    """The policy, its optimizer and the ranks; `update` makes all optimizer steps of one batch.

    sampler: the weights that rollouts are written by, where they are not the policy's.
    """

    def __init__(
        self,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        ranks: Ranks,
        settings: Settings,
        sampler: Policy | None = None,
    ):
        self.policy, self.optimizer, self.ranks, self.settings = policy, optimizer, ranks, settings
        self.sampler = sampler or policy

    def update(self, batch: Batch, algorithm: Algorithm, *, learning_rate: float, seed: int) -> dict[str, float]:
        """Means over the batch by metric name. Raises TrainingError on a non-finite gradient or a log-probability gap."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        averages = monitors.Averages()
        counts, own = self.ranks.gather_arrays({k: batch.arrays[k] for k in ("group_ids", "lengths")})
        norms = []
        for number, chosen in enumerate(mini_batches(counts["group_ids"], algorithm, seed)):
            member = torch.isin(counts["group_ids"], chosen)
            coefficients = torch.zeros(len(member))
            coefficients[member] = row_coefficients(
                algorithm.reduce, counts["lengths"][member], counts["group_ids"][member], self.settings.max_length
            )
            rows = member[own].nonzero().squeeze(1).tolist()
            if number == 0:
                self._watch(batch, rows, algorithm, averages)
            units = {
                "token": 0,
                "sequence": int((counts["lengths"][member] > 0).sum()),
                "pair": int(self.ranks.sums({"pairs": pairs_among(batch, rows)})["pairs"]),
            }
            self._backward(batch, rows, coefficients[own], units, algorithm, averages, measure_gap=number == 0)
            self._check_gap(averages)
            norms.append(self._step())
        updates = max(len(norms), 1)  # none when no rank has a row
        facts = {"gradient/norm": sum(norms) / updates, "update/steps": len(norms)}
        return {"update/rows": 0.0} | self._report(averages, updates) | facts

    @torch.no_grad()
    def measure(self, batch: Batch, algorithm: Algorithm) -> dict[str, float]:
        """Means of the objective and of its statistics over this rank's batch, by metric name; no step is made.

        Other ranks take no part, so that one of them can measure alone.
        """
        averages = monitors.Averages()
        arrays = batch.arrays
        coefficients = row_coefficients(
            algorithm.reduce, arrays["lengths"], arrays["group_ids"], self.settings.max_length
        )
        rows = (arrays["lengths"] > 0).nonzero().squeeze(1).tolist()
        units = {"token": 0, "sequence": len(rows), "pair": pairs_among(batch, rows)}
        for chosen in self._micro_batches(batch, rows):
            self._loss(batch.take(chosen), coefficients[chosen], units, algorithm, averages, measure_gap=False)
        return means(averages.sums, averages.counts, 1)

    def _micro_batches(self, batch: Batch, rows: list[int]) -> list[list[int]]:
        contexts, lengths = [s.training for s in batch.samples], [len(s.response) for s in batch.samples]
        return split(units_of(batch, rows), contexts, lengths, self.settings.tokens_per_micro_batch, self.policy.shared)

    def _backward(
        self,
        batch: Batch,
        rows: list[int],
        coefficients: Tensor,
        units: dict[str, int],
        algorithm: Algorithm,
        averages: monitors.Averages,
        measure_gap: bool,
    ) -> None:
        forwarded = active(batch, rows, algorithm)
        averages.add("update/rows", torch.tensor([len(forwarded)]))
        plan = self._micro_batches(batch, forwarded)
        if self.ranks.maximum(len(plan)) == 0:
            return
        for place, chosen in enumerate(plan or [[]]):
            with self._synchronised(last=place + 1 >= len(plan)):
                loss = self._loss(batch.take(chosen), coefficients[chosen], units, algorithm, averages, measure_gap)
                self.ranks.accelerator.backward(loss * self.ranks.size)

    def _loss(
        self,
        micro: Batch,
        coefficients: Tensor,
        units: dict[str, int],
        algorithm: Algorithm,
        averages: monitors.Averages,
        measure_gap: bool,
    ) -> Tensor:
        device = self.policy.device
        wanted = sources(required(algorithm))
        asked = {name: name in wanted for name in ("entropy", "values", "scores")}
        forwarded = {name for name in wanted if VOCABULARY[name].source in ("current", "old", "ref")}
        asked["logprobs"] = forwarded != {"scores"} or "rollout_logprobs" in micro.arrays
        if not len(micro):  # a rank without rows still takes part in the reduction of gradients
            return sum(self.policy.statistics(Rows([[0]], [[0]], [[True]], [1.0]), 1, **asked).values()).sum() * 0.0
        mask = micro.arrays["loss_mask"]
        out = self.policy.statistics(rows_of(micro, range(len(micro))), mask.shape[1], **asked)
        micro.arrays = {k: v.to(device) for k, v in micro.arrays.items()} | out
        moved = "old_logprobs" in micro.arrays or algorithm.epochs * algorithm.minibatches == 1
        if "logprobs" in out:
            micro.arrays.setdefault("old_logprobs", out["logprobs"].detach())
        mask, arrays = micro.arrays["loss_mask"], micro.arrays
        total = torch.zeros((), device=device)
        for part in (*algorithm.objective, *algorithm.regularizers):
            loss = call(part, micro)
            if loss.unit == "token":
                number = reduce_tokens(loss.values, mask, coefficients.to(device), arrays.get("weights"))
            else:
                number = reduce_units(loss.values, units[loss.unit])
            total = total + number
            averages.add_total(f"loss/{catalog.name_of(part)}", float(number.detach()))
            for name, values in loss.stats.items():
                averages.add(name, values, mask if values.shape == mask.shape else None)
        averages.add_total("loss/total", float(total.detach()))
        if measure_gap and self.sampler is self.policy and "rollout_logprobs" in arrays:
            same = torch.tensor([s.training == s.sampled for s in micro.samples], device=device)[:, None]
            monitors.gap(averages, out["logprobs"], arrays["rollout_logprobs"], mask & same)
        if "logprobs" in out:
            old = arrays["old_logprobs"] if moved and torch.is_grad_enabled() else None
            monitors.drift(averages, out["logprobs"], old, arrays.get("ref_logprobs"), mask)
        if "entropy" in out:
            averages.add("policy/entropy_exact", out["entropy"], mask)
        return total

    def _watch(self, batch: Batch, rows: list[int], algorithm: Algorithm, averages: monitors.Averages) -> None:
        """Measure the gap where the first mini-batch's own forward will not: under another context than was sampled
        from, of other weights than the policy's, or because no row of it is forwarded."""
        others = [i for i, s in enumerate(batch.samples) if self.sampler is not self.policy or s.training != s.sampled]
        sampled = "rollout_logprobs" in batch.arrays  # absent on a rank without rows, so every rank asks the others
        measured = len(set(active(batch, rows, algorithm)) - set(others)) if sampled else 0
        if not self.ranks.sums({"measured": measured})["measured"] and sampled:
            some = batch.take((others or list(range(len(batch))))[:MONITORED_ROWS])
            got = run_pass(self.sampler, some, self.settings.tokens_per_micro_batch, under="sampled")
            monitors.gap(averages, got["logprobs"], some.arrays["rollout_logprobs"], some.arrays["loss_mask"])

    def _check_gap(self, averages: monitors.Averages) -> None:
        name = "rollout/logprob_gap_mean"
        total = self.ranks.sums({"sum": averages.sums.get(name, 0.0), "count": averages.counts.get(name, 0.0)})
        mean = total["sum"] / max(total["count"], 1.0)
        if not mean <= self.settings.max_logprob_gap:
            raise TrainingError(
                f"the engine's log-probabilities differ from the trainer's by {mean:.3g} in the mean on the same tokens; "
                f"at most {self.settings.max_logprob_gap:g} is allowed (training.max_logprob_gap). The engine does not hold "
                "these weights, or samples with other settings than it was told: see docs/monitors.md, logprob_gap."
            )

    def _step(self) -> float:
        parameters = [p for _, p in self.policy.trainable()]
        for p in parameters:
            if p.grad is None:  # nothing was forwarded: an exact zero, so that the optimizer's moments still decay
                p.grad = torch.zeros_like(p)
        norm = float(self.ranks.accelerator.clip_grad_norm_(parameters, self.settings.max_grad_norm))
        if not norm < float("inf"):
            raise TrainingError(
                f"the gradient's norm is {norm}; expected a finite number. Lower training.learning_rate, or "
                "look at the last rollouts of the run for a score out of range."
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _synchronised(self, last: bool) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if last else self.ranks.accelerator.no_sync(self.policy.wrapped)

    def _report(self, averages: monitors.Averages, updates: int) -> dict[str, float]:
        out = means(self.ranks.sums(averages.sums), self.ranks.sums(averages.counts), updates)
        for part in self.ranks.gather(averages.maxima):
            for name, number in part.items():
                out[name] = max(out.get(name, 0.0), number)
        return out


def active(batch: Batch, rows: list[int], algorithm: Algorithm) -> list[int]:
    """The rows that the loss does not multiply by zero."""
    kept = [i for i in rows if batch.arrays["lengths"][i] > 0]
    if droppable(algorithm):
        kept = [i for i in kept if bool((batch.arrays["advantages"][i] != 0).any())]
    return kept


def mini_batches(group_ids: Tensor, algorithm: Algorithm, seed: int) -> Iterator[Tensor]:
    """The groups of each optimizer step, whole groups together, in an order that depends on the seed alone."""
    groups = group_ids.unique()
    for epoch in range(algorithm.epochs):
        generator = torch.Generator().manual_seed(seed * 1_000 + epoch)
        shuffled = groups[torch.randperm(len(groups), generator=generator)]
        yield from (part for part in shuffled.tensor_split(algorithm.minibatches) if len(part))


def means(sums: dict[str, float], counts: dict[str, float], updates: int) -> dict[str, float]:
    """Losses and rows by update, everything else by what was counted."""
    out = {}
    for name in sums:
        if not counts[name]:
            continue
        per_update = name.startswith("loss/") or name == "update/rows"
        out[name] = sums[name] / updates if per_update else sums[name] / counts[name]
    return out


def pairs_among(batch: Batch, rows: list[int]) -> int:
    """How many pairs stand whole in these rows, each side with something to train on."""
    filled = [i for i in rows if batch.arrays["lengths"][i] > 0]
    return 0 if batch.pairs is None else len(units_of(batch, filled))


def units_of(batch: Batch, rows: list[int]) -> list[list[int]]:
    """Rows that a loss looks at together: the two of a pair, or each by itself."""
    if batch.pairs is None:
        return [[i] for i in rows]
    kept = set(rows)
    return [[a, b] for a, b in batch.pairs.tolist() if a in kept and b in kept]
