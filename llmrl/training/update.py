"""What an update rule works on: the losses of a batch's mini-batches, their gradients, and the optimizer's step."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from llmrl import catalog
from llmrl.algorithm import Algorithm, Extra
from llmrl.batch import VOCABULARY, Batch, sources
from llmrl.clock import span
from llmrl.errors import TrainingError
from llmrl.faults import reach
from llmrl.policy.model import Policy
from llmrl.training import monitors
from llmrl.training.balance import balanced
from llmrl.training.credit import on_all_ranks
from llmrl.training.losses import Counts, Job, Settings, active, countable, maxima, means, pairs_among
from llmrl.training.memory import out_of_memory
from llmrl.training.passes import run_pass
from llmrl.training.ranks import Ranks
from llmrl.updates.epochs import Epochs

MONITORED_ROWS = 8  # rows forwarded for the monitor alone, when the update's own rows cannot tell


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
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self.parameters: list[nn.Parameter] = [p for _, p in policy.trainable() if id(p) in held]
        self.steps = ranks.steps(policy, optimizer, self.parameters, settings.max_grad_norm)
        self.asked = settings.tokens_per_micro_batch
        self.skipped = 0  # steps in a row whose gradient was not finite
        self.split = 0  # micro-batches that did not fit into memory

    def kept(self) -> dict[str, Any]:
        """What a resumed run has to know to make the same numbers, plain data."""
        return {"skipped": self.skipped, "asked": self.asked, "budget": self.settings.tokens_per_micro_batch}

    def restore(self, kept: dict[str, Any] | None) -> None:
        """Put back what `kept` gave; None: from a checkpoint that had nothing of it."""
        if kept is not None:
            self.skipped = kept["skipped"]
            if kept["asked"] == self.asked:  # else the user has chosen anew
                self.settings = replace(self.settings, tokens_per_micro_batch=kept["budget"])

    def skip(self, norm: float) -> None:
        """Note a step whose gradient is not finite. TrainingError when it is one too many."""
        self.skipped += 1
        if self.skipped >= self.settings.max_skipped:
            raise TrainingError(
                f"the gradient's norm is {norm}, for the {self.skipped}. step of the optimizer in a row; expected a finite "
                "number. The weights are those before it. Lower training.learning_rate, or look at the last rollouts of the "
                "run for a score out of range; training.max_skipped says how many such steps are passed over."
            )

    def shrink(self, job: Job, chosen: list[int]) -> None:
        """Have smaller micro-batches from now on than these rows, which did not fit. TrainingError where there are none."""
        samples = job.batch.samples
        tokens = sum(len(samples[i].training) + len(samples[i].response) for i in chosen)
        budget = min(self.settings.tokens_per_micro_batch, tokens) // 2
        self.settings = replace(self.settings, tokens_per_micro_batch=max(budget, 1))
        self.split += 1
        if chosen in job.micro_batches(job.active()):
            raise TrainingError(
                f"{len(chosen)} rows of together {tokens:,} tokens do not fit into memory and cannot be split further. Set "
                "model.gradient_checkpointing=true, lower rollout.max_tokens, or train adapters (model.lora)."
            )

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
        batch = balanced(batch, algorithm, self.ranks)
        problem = Problem(self, batch, algorithm, extras, states, seed)
        key = f"update.{catalog.name_of(rule)}"
        told, states[key] = rule.apply(states.get(key, rule.init()), problem)
        return problem.report() | told

    @torch.no_grad()
    def measure(self, batch: Batch, algorithm: Algorithm, states: dict[str, Any] | None = None) -> dict[str, float]:
        """Means of the objective and of its statistics over this rank's batch, by metric name; no step is made.

        Other ranks take no part, so that one of them can measure alone: where weights are spread, inside `Policy.whole`.
        """
        averages = monitors.Averages()
        states = {key: part.init() for key, part in algorithm.remembering().items()} | (states or {})
        counts = Counts.of(countable(batch), algorithm.reduce, self.settings, slice(None), pairs_among(batch))
        job = Job(self, batch, algorithm, states, counts)
        for chosen in job.micro_batches(batch.counted.nonzero().squeeze(1).tolist()):
            job.loss(chosen, averages)
        return means(averages.sums, averages.counts, 1)


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
        self.parameters = updater.parameters
        self.groups = updater.ranks.gather_arrays({"group_ids": batch.arrays["group_ids"]})[0]["group_ids"]
        self.averages, self.norms, self.measured, self.last = monitors.Averages(), [], 0, {}
        self.skipped, self.split_before = 0, updater.split

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
        """Put the gradient of the mini-batch's loss, over all ranks, into every parameter's `grad`, which holds none yet.

        only: names of the loss parts that count, extras left out. Returns means over all ranks by name of the statistic,
        '<statistic>/max' maxima, 'loss' and 'rows'.
        """
        self._prepare(mini)
        averages, first = monitors.Averages(), self.measured == 0
        if first:
            self._watch(mini, averages)
        jobs = self._jobs(mini, only)
        averages.add("update/rows", torch.tensor([len(jobs[0].active())]))
        self.measured += only is None
        spread = self.updater.policy.sharding.spread  # then a step needs a gradient, be it nothing
        if spread or self.ranks.maximum(sum(len(job.active()) for job in jobs)):
            while (seen := self._backward(jobs, first and not self.algorithm.perturb)) is None:
                self.zero()
            averages.merge(seen)
        reach("differentiated")
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
        for job, chosen in self._plan(jobs):
            if chosen:
                job.loss(chosen, averages)
            else:
                self.updater.policy.idle()
        return self._told(averages, keep=False)

    def step(self) -> float:
        """Clip the gradient, make the optimizer's step, let the loss parts observe it; the gradient's norm.

        Where that is not finite nothing changes. TrainingError when too many steps in a row are skipped so.
        """
        norm = self.updater.steps.step()
        if not norm < float("inf"):
            self.skipped += 1
            self.updater.skip(norm)
            return norm
        self.updater.skipped = 0
        self.norms.append(norm)
        reach("stepped")
        for key, part in self.algorithm.remembering().items():
            if hasattr(part, "observe"):
                self.states[key] = part.observe(self.states[key], self.last)
        return norm

    def zero(self) -> None:
        """Forget the gradient."""
        self.updater.steps.zero()

    def report(self) -> dict[str, float]:
        """Means over everything that was done, by metric name."""
        updates = max(self.measured, 1)  # none when no rank has a row
        facts = {"gradient/norm": sum(self.norms) / max(len(self.norms), 1), "update/steps": len(self.norms)}
        out = means(self.ranks.sums(self.averages.sums), self.ranks.sums(self.averages.counts), updates)
        split = self.ranks.sums({"split": self.updater.split - self.split_before})["split"]
        troubles = {"update/skipped": self.skipped, "update/split": split}
        facts |= {name: count for name, count in troubles.items() if count}
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
        replaced = any(getattr(catalog.unwrap(part), "replaces_old", False) for part in self.algorithm.shaping)
        if not self.norms and not replaced:
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
        from, of other weights than the policy's, with noise, or because no row of it is forwarded. Rows that older weights
        wrote cannot tell."""
        batch, updater, telling = self.batch, self.updater, of_now(self.batch)
        own = updater.sampler is updater.policy and not self.algorithm.perturb
        others = [i for i in telling if not own or batch.samples[i].training != batch.samples[i].sampled]
        sampled = "rollout_logprobs" in batch.arrays and bool(telling)  # a rank without such rows asks the others
        forwarded = [mini.batch.samples[i] for i in active(mini.batch, of_now(mini.batch), self.algorithm)]
        measured = sum(own and s.training == s.sampled for s in forwarded) if sampled else 0
        known = self.ranks.sums({"measured": measured, "sampled": sampled})
        if known["measured"] or not known["sampled"]:
            return
        some = batch.take((others or telling)[:MONITORED_ROWS])
        got = run_pass(updater.sampler, some, updater.settings.tokens_per_micro_batch, under="sampled")
        if sampled:
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

    def _backward(self, jobs: list[Job], measure_gap: bool) -> monitors.Averages | None:
        """Add up the gradient, a micro-batch at a time. None when one did not fit: what is there then is no gradient, and
        the next ones are smaller."""
        averages = monitors.Averages()
        plan = self._plan(jobs) or [(jobs[0], [])]
        for place, (job, chosen) in enumerate(plan):
            last, done = place + 1 >= len(plan), False
            # all processes: none begins a backward pass that waits for the others before each has the room for it
            together = last and self.ranks.size > 1 and self.updater.steps.forgets
            with self.updater.steps.sharing(last):
                loss = None
                with span("forward"), self._smaller_after(job, chosen):
                    loss = job.loss(chosen, averages, measure_gap) if chosen else job.nothing()
                fits = self._all_fit(loss is not None) if together else loss is not None
                if fits:
                    with span("backward"), self._smaller_after(job, chosen, certain=together):
                        self.updater.steps.backward(loss * self.ranks.size)
                        done = True
                elif together:
                    self.updater.steps.backward(job.nothing())  # what waits for one since the forward pass has it
            if not done:
                return None
        return averages

    @contextlib.contextmanager
    def _smaller_after(self, job: Job, chosen: list[int], certain: bool = False) -> Iterator[None]:
        """Inside, memory that does not suffice for these rows makes later micro-batches smaller; an error where the others
        are certain of this pass, or a gradient that was begun cannot be begun anew."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if certain or not chosen or not self.updater.steps.forgets or not out_of_memory(error):
                raise
            self.updater.shrink(job, chosen)

    def _all_fit(self, here: bool) -> bool:
        """Whether every process had the room. From now on none makes larger micro-batches than another: a checkpoint says
        what one of them does."""
        settings = self.updater.settings
        told = self.ranks.gather((here, settings.tokens_per_micro_batch))
        self.updater.settings = replace(settings, tokens_per_micro_batch=min(budget for _, budget in told))
        return all(fits for fits, _ in told)

    def _plan(self, jobs: list[Job]) -> list[tuple[Job, list[int]]]:
        """Each job with its micro-batches, empty ones behind where other ranks have more and wait for this one."""
        plan = [(job, chosen) for job in jobs for chosen in job.micro_batches(job.active())]
        return plan + [(jobs[0], [])] * (self.updater.policy.sharding.most(len(plan)) - len(plan))


def of_now(batch: Batch) -> list[int]:
    """The rows that the weights in training wrote, as far as the batch says who wrote them."""
    if "staleness" not in batch.arrays:
        return list(range(len(batch)))
    return (batch.arrays["staleness"] == 0).nonzero().squeeze(1).tolist()
