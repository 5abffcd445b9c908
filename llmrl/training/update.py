"""What an update rule works on: the losses of a batch's mini-batches, their gradients, and the optimizer's step."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llmrl import catalog
from llmrl.algorithm import Algorithm, Extra
from llmrl.batch import VOCABULARY, Batch, call, sources
from llmrl.errors import RecipeError, TrainingError
from llmrl.ops.reduce import reduce_tokens, reduce_units, row_coefficients
from llmrl.plan import droppable, together
from llmrl.policy.forward import ACTION_VALUES, Rows
from llmrl.policy.model import Policy
from llmrl.training import monitors
from llmrl.training.credit import on_all_ranks
from llmrl.training.micro_batches import split
from llmrl.training.passes import rows_of, run_pass
from llmrl.training.ranks import Ranks
from llmrl.updates.epochs import Epochs

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

    def update(
        self,
        batch: Batch,
        algorithm: Algorithm,
        *,
        learning_rate: float,
        seed: int,
        extras: Sequence[tuple[Extra, Batch]] = (),
        states: dict[str, Any] | None = None,
    ) -> dict[str, float]:
        """Means over the batch by metric name. extras: second batches, this rank's rows. states: memories of parts by
        'stage.name', replaced by what they become. Raises TrainingError on a non-finite gradient or a log-probability gap.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group.get("rate", 1.0)
        states = {} if states is None else states
        for key, part in algorithm.remembering().items():
            states.setdefault(key, part.init())
        rule = algorithm.update or Epochs()
        problem = Problem(self, batch, algorithm, extras, states, seed)
        key = f"update.{catalog.name_of(rule)}"
        told, states[key] = rule.apply(states.get(key, rule.init()), problem)
        return problem.report() | told

    @torch.no_grad()
    def measure(self, batch: Batch, algorithm: Algorithm, states: dict[str, Any] | None = None) -> dict[str, float]:
        """Means of the objective and of its statistics over this rank's batch, by metric name; no step is made.

        Other ranks take no part, so that one of them can measure alone.
        """
        averages = monitors.Averages()
        states = {key: part.init() for key, part in algorithm.remembering().items()} | (states or {})
        counts = Counts.of(countable(batch), algorithm.reduce, self.settings, slice(None), pairs_among(batch))
        job = Job(self, batch, algorithm, states, counts)
        for chosen in job.micro_batches(batch.counted.nonzero().squeeze(1).tolist()):
            job.loss(chosen, averages)
        return means(averages.sums, averages.counts, 1)


@dataclass(frozen=True)
class Counts:
    """What the loss of a mini-batch is divided by: a coefficient for each of this rank's rows, and the units of all ranks."""

    coefficients: Tensor
    units: dict[str, int]

    @classmethod
    def of(cls, arrays: dict[str, Tensor], mode: str, settings: Settings, own: slice, pairs: int = 0) -> Counts:
        """arrays: group_ids and counted tokens of all ranks' rows; own: this rank's rows among them."""
        counted, groups = arrays["counted"], arrays["group_ids"]
        coefficients = row_coefficients(mode, counted, groups, settings.max_length)[own]
        filled = counted > 0
        units = {"sequence": int(filled.sum()), "group": len(groups[filled].unique()), "pair": pairs}
        return cls(coefficients, units)


class Job:
    """The loss of one batch of rows on this rank, a micro-batch at a time.

    extra: the Extra that the rows belong to; None for the rollouts. only: names of the loss parts that count. noise_seed:
    of the noise inside the model, where the algorithm has some.
    """

    def __init__(
        self,
        updater: Updater,
        batch: Batch,
        algorithm: Algorithm,
        states: dict[str, Any],
        counts: Counts,
        extra: Extra | None = None,
        only: Collection[str] | None = None,
        noise_seed: int = 0,
    ):
        self.noise_seed = noise_seed
        self.updater, self.batch, self.algorithm, self.counts, self.extra = updater, batch, algorithm, counts, extra
        stages = (
            (("extra", extra.objective),)
            if extra
            else (
                ("objective", algorithm.objective),
                ("regularizers", algorithm.regularizers),
            )
        )
        self.parts = [
            (stage, part, states.get(f"{stage}.{catalog.name_of(part)}"))
            for stage, parts in stages
            for part in parts
            if only is None or catalog.name_of(part) in only
        ]
        self.names = sources(name for _, part, _ in self.parts for name in catalog.inputs_of(part))

    def micro_batches(self, rows: Sequence[int]) -> list[list[int]]:
        samples, policy = self.batch.samples, self.updater.policy
        units = units_of(self.batch, list(rows), self.extra is None and together(self.algorithm))
        budget = self.updater.settings.tokens_per_micro_batch
        return split(units, [s.training for s in samples], [len(s.response) for s in samples], budget, policy.shared)

    def active(self) -> list[int]:
        """The rows that the loss does not multiply by zero."""
        return active(self.batch, range(len(self.batch)), self.algorithm if self.extra is None else None)

    def loss(self, chosen: list[int], averages: monitors.Averages, measure_gap: bool = False) -> Tensor:
        """The share of the loss that these rows have; what they say of themselves goes into averages."""
        updater, policy, main = self.updater, self.updater.policy, self.extra is None
        micro, device = self.batch.take(chosen), self.updater.policy.device
        asked: dict[str, Any] = {name: name in self.names for name in ("entropy", "values", "scores")}
        asked["action_values"] = bool(self.names & set(ACTION_VALUES))
        asked |= {name: micro.stored[name] for name in ("old", "ref") if f"{name}_kl" in self.names}
        if self.algorithm.perturb is not None and main:
            asked["perturbed"] = self.noise_seed
        forwarded = {name for name in self.names if VOCABULARY[name].source in ("current", "old", "ref")}
        asked["logprobs"] = forwarded != {"scores"} or "rollout_logprobs" in micro.arrays
        mask = micro.arrays["loss_mask"]
        rows = rows_of(micro, range(len(micro)), keyed="perturbed" in asked)
        out = policy.statistics(rows, mask.shape[1], **asked)
        micro.arrays = {k: v.to(device) for k, v in micro.arrays.items()} | out
        moved = "old_logprobs" in micro.arrays or self.algorithm.single_update
        if "logprobs" in out:
            micro.arrays.setdefault("old_logprobs", out["logprobs"].detach())
        mask, arrays = micro.arrays["loss_mask"], micro.arrays
        coefficients = self.counts.coefficients[chosen].to(device)
        total = torch.zeros((), device=device)
        for stage, part, state in self.parts:
            loss, name = call(part, micro, state), catalog.name_of(part)
            judged = stage == "objective" and "logprobs" in sources(catalog.inputs_of(part))  # a critic's loss is not
            weights = arrays.get("weights") if judged else None
            if loss.unit == "token":
                number = reduce_tokens(loss.values, mask, coefficients, weights)
            else:
                if weights is not None and bool((weights[mask] != 1).any()):
                    raise RecipeError(
                        f"algorithm.objective: {name} gives one loss a {loss.unit}, and weights on tokens mean nothing there. "
                        "Leave the part out that writes them (shaping, prepare or select), or use a loss on tokens."
                    )
                number = reduce_units(loss.values, self.counts.units[loss.unit])
            total = total + number
            averages.add_total(f"loss/{name}" if main else f"loss/extra_{name}", float(number.detach()))
            for stat, values in loss.stats.items():
                label, kept = stat if main else f"extra/{stat}", mask if values.shape == mask.shape else None
                averages.add(label, values, kept)
                averages.add_maximum(f"{label}/max", values[kept] if kept is not None else values)
        total = total * self.extra.coefficient if self.extra else total
        averages.add_total("loss/total", float(total.detach()))
        if not main:
            return total
        if measure_gap and updater.sampler is policy and "rollout_logprobs" in arrays:
            same = torch.tensor([s.training == s.sampled for s in micro.samples], device=device)[:, None]
            monitors.gap(averages, out["logprobs"], arrays["rollout_logprobs"], mask & same)
        if "logprobs" in out:
            old = arrays["old_logprobs"] if moved and torch.is_grad_enabled() else None
            monitors.drift(averages, out["logprobs"], old, arrays.get("ref_logprobs"), mask)
        if "entropy" in out:
            averages.add("policy/entropy_exact", out["entropy"], mask)
        return total

    def nothing(self) -> Tensor:
        """What a rank without rows adds, so that it takes part in the reduction of gradients."""
        asked = {"values": "values" in self.names, "scores": "scores" in self.names}
        rows = Rows([[0]], [[0]], [[True]], [1.0])
        return sum(x.sum() for x in self.updater.policy.statistics(rows, 1, **asked).values()) * 0.0


@dataclass
class MiniBatch:
    """This rank's rows of one optimizer step. extras: second batches' shares. prepared: after how many steps it was."""

    rows: list[int]
    batch: Batch
    extras: list[tuple[Extra, Batch]]
    prepared: int = -1


class Problem:
    """One batch's optimization, for the rules of `llmrl.updates`: mini-batches, gradients over all ranks, steps."""

    def __init__(
        self,
        updater: Updater,
        batch: Batch,
        algorithm: Algorithm,
        extras: Sequence[tuple[Extra, Batch]],
        states: dict[str, Any],
        seed: int,
    ):
        self.updater, self.batch, self.algorithm = updater, batch, algorithm
        self.extras, self.states, self.seed, self.ranks = extras, states, seed, updater.ranks
        self.epochs = algorithm.epochs
        held = {id(p) for group in updater.optimizer.param_groups for p in group["params"]}
        self.parameters: list[nn.Parameter] = [p for _, p in updater.policy.trainable() if id(p) in held]
        self.groups = updater.ranks.gather_arrays({"group_ids": batch.arrays["group_ids"]})[0]["group_ids"]
        self.averages, self.norms, self.measured, self.last = monitors.Averages(), [], 0, {}

    def minibatches(self, epoch: int) -> list[MiniBatch]:
        """The mini-batches of an epoch: whole prompts together, in an order that depends on the seed alone."""
        groups = self.groups.unique()
        generator = torch.Generator().manual_seed(self.seed * 1_000 + epoch)
        shuffled = groups[torch.randperm(len(groups), generator=generator)]
        parts = [part for part in shuffled.tensor_split(self.algorithm.minibatches) if len(part)]
        out = []
        for number, part in enumerate(parts):
            rows = torch.isin(self.batch.arrays["group_ids"], part).nonzero().squeeze(1).tolist()
            shares = [(e, b.take(self._share(e, b, part, number, len(parts)))) for e, b in self.extras]
            out.append(MiniBatch(rows, self.batch.take(rows), shares))
        return out

    def _share(self, extra: Extra, batch: Batch, groups: Tensor, number: int, parts: int) -> list[int]:
        """Rows of a second batch that belong to a mini-batch: those of its prompts, or an even share of a batch of its own,
        by their place in the batch of all ranks."""
        ids = batch.arrays["group_ids"]
        chosen = torch.isin(ids, groups) if extra.source == "stored" else ids % parts == number
        return chosen.nonzero().squeeze(1).tolist()

    def gradient(self, mini: MiniBatch, only: Collection[str] | None = None) -> dict[str, float]:
        """Add the gradient of the mini-batch's loss, over all ranks, to every parameter's `grad`.

        only: names of the loss parts that count, extras left out. Returns means over all ranks by name of the statistic,
        '<statistic>/max' maxima, 'loss' and 'rows'.
        """
        self._prepare(mini)
        averages, first = monitors.Averages(), self.measured == 0
        if first:
            self._watch(mini, averages)
        jobs = self._jobs(mini, only)
        plan = [(job, chosen) for job in jobs for chosen in job.micro_batches(job.active())]
        averages.add("update/rows", torch.tensor([len(jobs[0].active())]))
        self.measured += only is None
        if self.ranks.maximum(len(plan)):
            for place, (job, chosen) in enumerate(plan or [(jobs[0], [])]):
                with self._synchronised(last=place + 1 >= len(plan)):
                    loss = job.loss(chosen, averages, first and not self.algorithm.perturb) if chosen else job.nothing()
                    self.ranks.accelerator.backward(loss * self.ranks.size)
        self._check_gap(averages)
        self.last = self._told(averages, keep=only is None)  # the log is of the whole loss
        return self.last

    @torch.no_grad()
    def measure(self, mini: MiniBatch, only: Collection[str] | None = None) -> dict[str, float]:
        """What `gradient` returns, without a gradient."""
        self._prepare(mini)
        averages = monitors.Averages()
        jobs = self._jobs(mini, only)
        averages.add("update/rows", torch.tensor([len(jobs[0].active())]))
        for job in jobs:
            for chosen in job.micro_batches(job.active()):
                job.loss(chosen, averages)
        return self._told(averages, keep=False)

    def step(self) -> float:
        """Clip the gradient, make the optimizer's step, let the loss parts observe it; the gradient's norm."""
        for p in self.parameters:
            if p.grad is None:  # nothing was forwarded: an exact zero, so that the optimizer's moments still decay
                p.grad = torch.zeros_like(p)
        norm = float(self.ranks.accelerator.clip_grad_norm_(self.parameters, self.updater.settings.max_grad_norm))
        if not norm < float("inf"):
            raise TrainingError(
                f"the gradient's norm is {norm}; expected a finite number. Lower training.learning_rate, or "
                "look at the last rollouts of the run for a score out of range."
            )
        self.updater.optimizer.step()
        self.zero()
        self.norms.append(norm)
        for key, part in self.algorithm.remembering().items():
            if hasattr(part, "observe"):
                self.states[key] = part.observe(self.states[key], self.last)
        return norm

    def zero(self) -> None:
        """Forget the gradient, also that of parameters which this stage does not train."""
        self.updater.policy.module.zero_grad(set_to_none=True)

    def report(self) -> dict[str, float]:
        """Means over everything that was done, by metric name."""
        updates = max(self.measured, 1)  # none when no rank has a row
        facts = {"gradient/norm": sum(self.norms) / max(len(self.norms), 1), "update/steps": len(self.norms)}
        out = means(self.ranks.sums(self.averages.sums), self.ranks.sums(self.averages.counts), updates)
        return {"update/rows": 0.0} | out | maxima(self.ranks, self.averages.maxima) | facts

    def _told(self, averages: monitors.Averages, keep: bool = True) -> dict[str, float]:
        out = means(self.ranks.sums(averages.sums), self.ranks.sums(averages.counts), 1)
        out |= maxima(self.ranks, averages.maxima)
        out |= {"loss": out.get("loss/total", 0.0), "rows": self.ranks.sums(averages.sums).get("update/rows", 0.0)}
        if keep:
            averages.maxima = {k: v for k, v in averages.maxima.items() if not k.endswith("/max")}
            self.averages.merge(averages)
        return out

    def _jobs(self, mini: MiniBatch, only: Collection[str] | None) -> list[Job]:
        """The rollouts' job, and one for each second batch unless only some parts count."""
        updater, algorithm = self.updater, self.algorithm
        arrays, own = self.ranks.gather_arrays(countable(mini.batch))
        pairs = int(self.ranks.sums({"pairs": pairs_among(mini.batch)})["pairs"])
        counts = Counts.of(arrays, algorithm.reduce, updater.settings, own, pairs)
        noise = self.seed * 1_000 + len(self.norms)
        jobs = [Job(updater, mini.batch, algorithm, self.states, counts, only=only, noise_seed=noise)]
        for extra, batch in mini.extras if only is None else ():
            mine, here = self.ranks.gather_arrays(countable(batch))
            counted = Counts.of(mine, extra.reduce, updater.settings, here)
            if extra.gate is not None:  # over all prompts, also those without a row
                prompts = max(len(arrays["group_ids"].unique()), 1)
                counted.coefficients.mul_(counted.units["sequence"] / prompts)
            jobs.append(Job(updater, batch, algorithm, self.states, counted, extra))
        return jobs

    def _prepare(self, mini: MiniBatch) -> None:
        """Run the parts that look at the whole mini-batch, under the weights as they are now."""
        if not self.algorithm.prepare or mini.prepared == len(self.norms):
            return
        mini.batch = self.batch.take(mini.rows)
        names = sources(name for part in self.algorithm.prepare for name in catalog.inputs_of(part))
        current = {name for name in names if VOCABULARY[name].source == "current"}
        if not self.norms:
            now = {name: mini.batch.arrays[f"old_{name}"] for name in current}
        else:
            budget = self.updater.settings.tokens_per_micro_batch
            got = run_pass(self.updater.policy, mini.batch, budget, entropy="entropy" in current)
            now = {name: got[name] for name in current}
        mini.batch.arrays |= now
        for part in self.algorithm.prepare:
            mini.batch.write(on_all_ranks(part, mini.batch, self.ranks, self.states, "prepare"))
        for name in now:
            del mini.batch.arrays[name]
        mini.prepared = len(self.norms)

    def _watch(self, mini: MiniBatch, averages: monitors.Averages) -> None:
        """Measure the gap where the first mini-batch's own forward will not: under another context than was sampled
        from, of other weights than the policy's, with noise, or because no row of it is forwarded."""
        batch, updater = self.batch, self.updater
        own = updater.sampler is updater.policy and not self.algorithm.perturb
        others = [i for i, s in enumerate(batch.samples) if not own or s.training != s.sampled]
        sampled = "rollout_logprobs" in batch.arrays  # absent on a rank without rows, so every rank asks the others
        forwarded = [mini.batch.samples[i] for i in active(mini.batch, range(len(mini.batch)), self.algorithm)]
        measured = sum(own and s.training == s.sampled for s in forwarded) if sampled else 0
        if not self.ranks.sums({"measured": measured})["measured"] and sampled:
            some = batch.take((others or list(range(len(batch))))[:MONITORED_ROWS])
            got = run_pass(updater.sampler, some, updater.settings.tokens_per_micro_batch, under="sampled")
            monitors.gap(averages, got["logprobs"], some.arrays["rollout_logprobs"], some.arrays["loss_mask"])

    def _check_gap(self, averages: monitors.Averages) -> None:
        name = "rollout/logprob_gap_mean"
        total = self.ranks.sums({"sum": averages.sums.get(name, 0.0), "count": averages.counts.get(name, 0.0)})
        mean = total["sum"] / max(total["count"], 1.0)
        if not mean <= self.updater.settings.max_logprob_gap:
            raise TrainingError(
                f"the engine's log-probabilities differ from the trainer's by {mean:.3g} in the mean on the same tokens; "
                f"at most {self.updater.settings.max_logprob_gap:g} is allowed (training.max_logprob_gap). The engine does not "
                "hold these weights, or samples with other settings than it was told: see docs/monitors.md, logprob_gap."
            )

    def _synchronised(self, last: bool) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if last else self.ranks.accelerator.no_sync(self.updater.policy.wrapped)


def active(batch: Batch, rows: Sequence[int], algorithm: Algorithm | None) -> list[int]:
    """The rows that the loss does not multiply by zero. algorithm: None for a second batch, all of whose rows count."""
    counted = batch.counted.tolist()
    kept = [i for i in rows if counted[i]]
    if algorithm is not None and droppable(algorithm):
        acting = batch.arrays["advantages"] * batch.arrays.get("weights", torch.ones(()))
        kept = [i for i in kept if bool((acting[i] != 0).any())]
    return kept


def countable(batch: Batch) -> dict[str, Tensor]:
    """What the divisors of a loss are worked out from."""
    return {"group_ids": batch.arrays["group_ids"], "counted": batch.counted}


def means(sums: dict[str, float], counts: dict[str, float], updates: int) -> dict[str, float]:
    """Losses and rows by update, everything else by what was counted."""
    out = {}
    for name in sums:
        if not counts[name]:
            continue
        per_update = name.startswith("loss/") or name == "update/rows"
        out[name] = sums[name] / updates if per_update else sums[name] / counts[name]
    return out


def maxima(ranks: Ranks, own: dict[str, float]) -> dict[str, float]:
    """The largest of every rank, by name."""
    out: dict[str, float] = {}
    for part in ranks.gather(own):
        for name, number in part.items():
            out[name] = max(out.get(name, number), number)
    return out


def pairs_among(batch: Batch) -> int:
    """How many pairs have something to train on on each side."""
    if batch.pairs is None:
        return 0
    return int((batch.counted[batch.pairs] > 0).all(1).sum())


def units_of(batch: Batch, rows: list[int], grouped: bool) -> list[list[int]]:
    """Rows that a loss looks at together: those of pairs that share one, a prompt's, or each by itself."""
    kept = set(rows)
    if batch.pairs is not None:
        return linked([(a, b) for a, b in batch.pairs.tolist() if a in kept and b in kept])
    if not grouped:
        return [[i] for i in rows]
    of_group: dict[int, list[int]] = {}
    for i in rows:
        of_group.setdefault(int(batch.arrays["group_ids"][i]), []).append(i)
    return list(of_group.values())


def linked(pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The rows of the pairs, those that hang together in one list: a row is forwarded once, in however many pairs it is."""
    unit_of: dict[int, list[int]] = {}
    for a, b in pairs:
        one, other = unit_of.setdefault(a, [a]), unit_of.setdefault(b, [b])
        if one is not other:
            one.extend(other)
            unit_of |= dict.fromkeys(other, one)
    return list({id(unit): unit for unit in unit_of.values()}.values())
