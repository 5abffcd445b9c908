"""Training on a table: rollouts, then llmrl's own credit, losses, reductions and update rules, on logits instead of a model."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.lab.tasks import Task, seeded
from llmrl import catalog
from llmrl.algorithm import Algorithm, Extra
from llmrl.batch import Batch, call
from llmrl.combiners.weighted_sum import weighted_sum
from llmrl.ops.reduce import reduce_tokens, reduce_units, row_coefficients
from llmrl.training.credit import assign_credit, on_all_ranks, reward, selected
from llmrl.types import Sample
from llmrl.updates.epochs import Epochs

ALONE: Any = SimpleNamespace(size=1)  # the ranks of a single process


class Table:
    """A softmax policy of logits [S,V] with critics of states [S] and of their symbols [S,V]; all of them are trained.

    features [S,F]: the logits are features @ weights, so that states share what they learn; None: a row each.
    """

    def __init__(self, logits: Tensor, features: Tensor | None = None):
        self.features = features
        start = logits if features is None else torch.linalg.lstsq(features, logits).solution
        self.weights = start.clone().requires_grad_()
        self.values = torch.zeros(len(logits)).requires_grad_()
        self.action_values = torch.zeros(logits.shape).requires_grad_()

    @property
    def parameters(self) -> list[Tensor]:
        return [self.weights, self.values, self.action_values]

    @property
    def logits(self) -> Tensor:
        return self.weights if self.features is None else self.features @ self.weights

    @property
    def chances(self) -> Tensor:
        """[S,V]: the probability of every symbol."""
        return self.logits.detach().softmax(-1)

    def statistics(
        self, states: Tensor, tokens: Tensor, old: Tensor, ref: Tensor, noise: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Every array of a current pass, [N,T]; old and ref are the other policies' logits. noise [N,T,V] is added to this
        policy's for the log-probabilities alone.
        """
        all_logprobs = self.logits.log_softmax(-1)
        probabilities, values = all_logprobs.exp(), self.action_values
        old, ref = old.log_softmax(-1), ref.log_softmax(-1)
        expected = (probabilities * values).sum(-1).detach()
        each = {
            "entropy": -(probabilities * all_logprobs).sum(-1),
            "old_kl": (old.exp() * (old - all_logprobs)).sum(-1),
            "ref_kl": (probabilities * (all_logprobs - ref)).sum(-1),
            "values": self.values,
            "expected_values": expected,
            "expected_advantages": (probabilities * (values - expected[:, None]).detach()).sum(-1),
        }
        out = {"logprobs": all_logprobs[states, tokens], "action_values": values[states, tokens]}
        if noise is not None:
            out["logprobs"] = (self.logits[states] + noise).log_softmax(-1).gather(2, tokens[..., None])[..., 0]
        return out | {name: array[states] for name, array in each.items()}

    def entropy(self) -> float:
        """Mean over the states, nats."""
        return float(torch.distributions.Categorical(logits=self.logits.detach()).entropy().mean())


@dataclass
class History:
    """What was seen batch by batch: exact mean reward and entropy after each, KL(old || new) over the states, its mean and
    its greatest; norms of every gradient; what the update rule and the loss parts told.
    """

    reward: list[float] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    furthest: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    told: list[dict[str, float]] = field(default_factory=list)


class Lab:
    """A method at work on a task. rate: of plain gradient descent on the reduced loss.

    noise: standard deviation of what is added to the sampler's logits, so that it is not the trainer's policy. perturbed:
    the same for the trained policy's in every step, anew each time. stale: batches between a policy and the rollouts that
    it learns from. rows: makes the second batch of an `extra` from the rollouts' batch. anchors: a prompt's anchor reward.
    """

    def __init__(
        self,
        task: Task,
        logits: Tensor,
        algorithm: Algorithm,
        *,
        rate: float,
        seed: int = 0,
        group_size: int = 8,
        noise: float = 0.0,
        perturbed: float = 0.0,
        stale: int = 0,
        rows: Callable[[Extra, Batch], Batch] | None = None,
        anchors: Tensor | None = None,
        prompts: Tensor | None = None,
        features: Tensor | None = None,
    ):
        self.task, self.algorithm, self.rate, self.group_size = task, algorithm, rate, group_size
        self.table = Table(logits, features)
        self.ref, self.rows, self.anchors = self.table.logits.detach().clone(), rows, anchors
        self.prompts = torch.arange(task.prompts) if prompts is None else prompts
        self.generator, self.noise, self.perturbed, self.stale = seeded(seed), noise, perturbed, stale
        self.seed, self.number, self.steps = seed, 0, 1
        self.states: dict[str, Any] = {key: part.init() for key, part in algorithm.remembering().items()}
        self.past: list[Tensor] = []
        self.history = History()
        self.answers = task.answers() if task.symbols**task.length <= 4096 else None

    def run(self, steps: int) -> History:
        """That many batches, each with all its updates."""
        self.steps = steps
        for _ in range(steps):
            self.step()
        return self.history

    def step(self) -> Batch | None:
        """One batch; returned as it was trained on, None when nothing of it was kept."""
        batch = self.credited(self.collect())
        before = self.table.logits.detach().clone()
        if len(batch):
            rule = self.algorithm.update or Epochs()
            key = f"update.{catalog.name_of(rule)}"
            problem = Steps(self, batch, before)
            told, self.states[key] = rule.apply(self.states.get(key, rule.init()), problem)
            self.history.norms += problem.norms
            self.history.told.append(problem.last | told)
        self.number += 1
        self.note(before)
        return batch if len(batch) else None

    def collect(self) -> Batch:
        """Rollouts of every prompt with all arrays that need no credit."""
        prompts = self.prompts.repeat_interleave(self.group_size)
        self.past.append(self.table.logits.detach().clone())
        sampler = self.past[max(0, len(self.past) - 1 - self.stale)]
        if self.noise:
            sampler = sampler + self.noise * torch.randn(sampler.shape, generator=seeded(1000 + self.seed))
        return self.described(prompts, self.sampled(sampler, prompts), sampler)

    def sampled(self, logits: Tensor, prompts: Tensor) -> Tensor:
        """[N,T]: an answer drawn for each prompt."""
        probabilities = logits.softmax(-1)
        tokens = torch.zeros(len(prompts), 0, dtype=torch.long)
        for _ in range(self.task.length):
            one_more = torch.cat([tokens, torch.zeros(len(prompts), 1, dtype=torch.long)], 1)
            here = self.task.states(prompts, one_more)[:, -1]
            tokens = torch.cat([tokens, torch.multinomial(probabilities[here], 1, generator=self.generator)], 1)
        return tokens

    @torch.no_grad()
    def described(self, prompts: Tensor, tokens: Tensor, sampler: Tensor) -> Batch:
        """The batch of these answers, drawn from the sampler's logits."""
        task, states = self.task, self.task.states(prompts, tokens)
        mask = torch.ones(tokens.shape, dtype=torch.bool)
        now, size = self.table.logits, (len(prompts),)
        got = self.table.statistics(states, tokens, now, self.ref)
        parts = task.reward(prompts, tokens)
        arrays = {
            "prompts": prompts,
            "states": states,
            "tokens": tokens,
            "loss_mask": mask,
            "lengths": mask.sum(1),
            "weights": torch.ones(tokens.shape),
            "group_ids": prompts.clone(),
            "truncated": torch.zeros(size, dtype=torch.bool),
            "temperatures": torch.ones(tokens.shape),
            "reward_parts": parts if parts.dim() == 2 else parts[:, None],
            "rollout_logprobs": sampler.log_softmax(-1)[states, tokens],
            "old_logprobs": got["logprobs"],
            "old_entropy": got["entropy"],
            "old_values": got["values"],
            "old_expected_values": got["expected_values"],
            "ref_logprobs": self.ref.log_softmax(-1)[states, tokens],
            "staleness": torch.full(size, self.stale),
            "row_keys": torch.arange(len(prompts)),
        }
        if self.anchors is not None:
            arrays["anchor_rewards"] = self.anchors[prompts]
        if "greedy_rewards" in self.wanted:
            best = self.greedy(torch.arange(task.prompts))
            earned = task.reward(torch.arange(task.prompts), best)
            arrays["greedy_rewards"] = earned[prompts] if earned.dim() == 1 else earned.sum(1)[prompts]
        arrays |= task.describe(prompts, tokens) if task.describe else {}
        arrays["lengths"] = arrays["loss_mask"].sum(1)
        samples = [
            Sample((int(p),), (int(p),), tuple(t), tuple(m))
            for p, t, m in zip(prompts, tokens.tolist(), arrays["loss_mask"].tolist(), strict=True)
        ]
        constants = {
            "reward_weights": torch.ones(arrays["reward_parts"].shape[1]),
            "progress": torch.tensor(self.number / self.steps),
            "step_number": torch.tensor(float(self.number)),
        }
        return Batch(samples, arrays, None, constants)

    def greedy(self, prompts: Tensor) -> Tensor:
        """[N,T]: the most probable symbol in every place."""
        tokens = torch.zeros(len(prompts), self.task.length, dtype=torch.long)
        for t in range(self.task.length):
            tokens[:, t] = self.table.logits[self.task.states(prompts, tokens)[:, t]].argmax(-1)
        return tokens

    @property
    def wanted(self) -> set[str]:
        parts = [self.algorithm.advantage, *self.algorithm.shaping] if self.algorithm.advantage else []
        return {name for part in parts for name in catalog.inputs_of(part)}

    def credited(self, batch: Batch) -> Batch:
        """The batch with its reward, selections and credit."""
        algorithm = self.algorithm
        reward(batch, algorithm.combine or (weighted_sum,), ALONE, self.states)
        batch = self.chosen(batch, "scored")
        if len(batch):
            assign_credit(batch, algorithm, ALONE, self.states)
            batch = self.chosen(batch, "credited")
        return batch

    def chosen(self, batch: Batch, at: str) -> Batch:
        rows, _ = selected(batch, self.algorithm.select, ALONE, self.states, at=at)
        return batch if len(rows) == len(batch) else batch.take(rows)

    @torch.no_grad()
    def note(self, before: Tensor) -> None:
        """Measure the table as it is now against the one before the batch."""
        old, new = before.log_softmax(-1), self.table.logits.log_softmax(-1)
        each = (old.exp() * (old - new)).sum(-1)
        self.history.kl.append(float(each.mean()))
        self.history.furthest.append(float(each.max()))
        self.history.entropy.append(self.table.entropy())
        if self.answers is not None:
            self.history.reward.append(self.expected_reward())

    @torch.no_grad()
    def expected_reward(self) -> float:
        """Exact mean over prompts, by counting every answer; of several rewards their sum."""
        prompts, tokens = self.answers
        probability = self.table.logits.log_softmax(-1)[self.task.states(prompts, tokens), tokens].sum(1).exp()
        earned = self.task.reward(prompts, tokens)
        earned = earned.sum(1) if earned.dim() == 2 else earned
        return float((probability * earned).sum() / self.task.prompts)


class Steps:
    """One batch's optimization, as the rules of `llmrl.updates` see it."""

    def __init__(self, lab: Lab, batch: Batch, before: Tensor):
        self.lab, self.batch, self.before, self.algorithm = lab, batch, before, lab.algorithm
        self.epochs, self.states = lab.algorithm.epochs, lab.states
        self.parameters = lab.table.parameters
        self.norms: list[float] = []
        self.last: dict[str, float] = {}
        self.extras = [
            (extra, self._gated(extra, lab.rows(extra, batch))) for extra in self.algorithm.extra if lab.rows
        ]

    def minibatches(self, epoch: int) -> list[Batch]:
        """Whole prompts together, in an order of the seed's."""
        found = []
        groups = self.batch.arrays["group_ids"].unique()
        order = torch.randperm(len(groups), generator=seeded(self.lab.seed * 1000 + self.lab.number * 50 + epoch))
        for part in groups[order].tensor_split(self.algorithm.minibatches):
            rows = torch.isin(self.batch.arrays["group_ids"], part).nonzero().squeeze(1).tolist()
            if rows:
                found.append(self.batch.take(rows) if len(rows) < len(self.batch) else self.batch)
        return found

    def gradient(self, mini: Batch, only: Collection[str] | None = None) -> dict[str, float]:
        """Add the gradient of the mini-batch's loss to the parameters'."""
        loss, self.last = self.loss(mini, only)
        if loss.requires_grad:
            loss.backward()
        return self.last

    def measure(self, mini: Batch, only: Collection[str] | None = None) -> dict[str, float]:
        with torch.no_grad():
            return self.loss(mini, only)[1]

    def step(self) -> float:
        """Descend, let the loss parts observe it; the gradient's norm."""
        kept = [p for p in self.parameters if p.grad is not None]
        norm = float(torch.stack([p.grad.norm() for p in kept]).norm()) if kept else 0.0
        with torch.no_grad():
            for p in kept:
                p -= self.lab.rate * p.grad
        self.zero()
        self.norms.append(norm)
        for key, part in self.algorithm.remembering().items():
            if hasattr(part, "observe"):
                self.states[key] = part.observe(self.states[key], self.last)
        return norm

    def zero(self) -> None:
        for p in self.parameters:
            p.grad = None

    def loss(self, mini: Batch, only: Collection[str] | None = None) -> tuple[Tensor, dict[str, float]]:
        """(loss, {statistic: mean, 'statistic/max': maximum, 'loss', 'rows'}) of a mini-batch and the second batches."""
        now = Batch(mini.samples, dict(mini.arrays), mini.pairs, mini.constants)
        current = self.statistics(now)
        now.arrays |= {name: array.detach() for name, array in current.items()}
        for part in self.algorithm.prepare:
            now.write(on_all_ranks(part, now, ALONE, self.states, "prepare"))
        now.arrays |= current
        stages = [("objective", p) for p in self.algorithm.objective] + [
            ("regularizers", p) for p in self.algorithm.regularizers
        ]
        stages = [(stage, part) for stage, part in stages if only is None or catalog.name_of(part) in only]
        told: dict[str, float] = {}
        total = self.reduced(now, stages, self.algorithm.reduce, 1.0, told)
        for extra, rows in self.extras if only is None else ():
            arrays = Batch(rows.samples, rows.arrays | self.statistics(rows), None, rows.constants)
            share = 1.0
            if extra.gate is not None:
                share = len(rows.arrays["group_ids"].unique()) / len(mini.arrays["group_ids"].unique())
            parts = [("extra", part) for part in extra.objective]
            total = total + self.reduced(arrays, parts, extra.reduce, share * extra.coefficient, told)
        return total, told | {"loss": float(total.detach()), "rows": float(len(mini))}

    def statistics(self, batch: Batch) -> dict[str, Tensor]:
        lab, states = self.lab, batch.arrays["states"]
        noise = None
        if lab.perturbed:
            noise = lab.perturbed * torch.randn(*states.shape, lab.task.symbols, generator=lab.generator)
        return lab.table.statistics(states, batch.arrays["tokens"], self.before, lab.ref, noise)

    def reduced(self, batch: Batch, parts: Any, mode: str, share: float, told: dict[str, float]) -> Tensor:
        """The sum of the parts' losses over a batch, with its own counts."""
        arrays, total = batch.arrays, torch.zeros(())
        mask, lengths, groups = arrays["loss_mask"], arrays["loss_mask"].sum(1), arrays["group_ids"]
        coefficients = row_coefficients(mode, lengths, groups, self.lab.task.length)
        counts = {"sequence": int((lengths > 0).sum()), "group": len(groups[lengths > 0].unique())}
        counts["pair"] = 0 if batch.pairs is None else len(batch.pairs)
        for stage, part in parts:
            loss = call(part, batch, self.states.get(f"{stage}.{catalog.name_of(part)}"))
            weights = arrays["weights"] if stage == "objective" else None
            if loss.unit == "token":
                total = total + share * reduce_tokens(loss.values, mask, coefficients, weights)
            else:
                total = total + share * reduce_units(loss.values, counts[loss.unit])
            for name, values in loss.stats.items():
                kept = values.detach().float()[mask] if values.shape == mask.shape else values.detach().float()
                if kept.numel():
                    told |= {name: float(kept.mean()), f"{name}/max": float(kept.max())}
        return total

    def _gated(self, extra: Extra, rows: Batch) -> Batch:
        """The second batch with the gate's value for its prompts as `advantages`."""
        if extra.gate is not None:
            arrays = self.batch.arrays
            value = dict(zip(arrays["group_ids"].tolist(), call(extra.gate, self.batch).tolist(), strict=True))
            of_row = torch.tensor([value.get(int(g), 0.0) for g in rows.arrays["group_ids"]])
            rows.arrays["advantages"] = of_row[:, None].expand(rows.arrays["loss_mask"].shape).clone()
        return rows


def changed(algorithm: Algorithm, **changes: Any) -> Algorithm:
    """The algorithm with other choices, such as epochs=8."""
    return replace(algorithm, **changes)
