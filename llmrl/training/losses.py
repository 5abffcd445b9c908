"""The loss of a batch on this rank, a micro-batch at a time, divided by the counts of all ranks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmrl import catalog
from llmrl.algorithm import Algorithm, Extra
from llmrl.batch import VOCABULARY, Batch, call, sources
from llmrl.errors import RecipeError
from llmrl.ops.reduce import reduce_tokens, reduce_units, row_coefficients
from llmrl.plan import droppable, together
from llmrl.policy.forward import ACTION_VALUES, Rows
from llmrl.training import monitors
from llmrl.training.micro_batches import split
from llmrl.training.passes import rows_of
from llmrl.training.ranks import Ranks


@dataclass(frozen=True)
class Settings:
    """What an update needs to know besides the batch."""

    tokens_per_micro_batch: int
    max_length: int  # longest answer allowed; the constant of the fixed_length reduction
    max_grad_norm: float
    max_logprob_gap: float
    max_skipped: int = 3  # optimizer steps in a row without a finite gradient that stop the run


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
        updater: Any,
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
            staleness = arrays.get("staleness")
            monitors.gap(averages, out["logprobs"], arrays["rollout_logprobs"], mask & same, staleness)
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
