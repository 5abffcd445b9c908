"""The training loop: one for online, offline and mixed training. It knows stages, never methods."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from llmrl.algorithm import Extra
from llmrl.batch import Batch, joined
from llmrl.catalog import inputs_of
from llmrl.combiners.weighted_sum import weighted_sum
from llmrl.observe import Collected
from llmrl.ops.masked import last_counted
from llmrl.policy.forward import ACTION_VALUES
from llmrl.run import StageRun
from llmrl.scoring import score, usable
from llmrl.training.assemble import assemble, pairs_of
from llmrl.training.credit import (
    assign_credit,
    diagnosed,
    early_and_late,
    on_all_ranks,
    reward,
    selected,
    without_probes,
)
from llmrl.training.passes import run_pass
from llmrl.training.ranks import Ranks
from llmrl.training.schedule import learning_rate
from llmrl.types import Group, Prompt


@dataclass
class Clock:
    """Seconds spent in each part of a step."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass
class Loop:
    """A stage in training."""

    stage: StageRun
    ranks: Ranks
    seed: int

    def step(self, number: int) -> Collected:
        """One step, from prompts to new weights in the engine."""
        stage, clock = self.stage, Clock()
        groups, ids, places, batch = self.collect(number, clock)
        with clock("passes"):
            self.run_passes(batch)
            reward(batch, early_and_late(stage.algorithm.combine)[1], self.ranks, stage.states)
            assign_credit(batch, stage.algorithm, self.ranks, stage.states)
            rows, _ = selected(batch, stage.algorithm.select, self.ranks, stage.states, at="credited")
            batch, places = chosen(batch, places, rows)
            noted = diagnosed(batch, stage.algorithm.diagnostics, self.ranks)
            extras = self.extra_batches(number, groups, ids, batch)
        with clock("update"):
            rate = learning_rate(stage.config.training, number, stage.steps)
            stats = stage.updater.update(
                batch,
                stage.algorithm,
                learning_rate=rate,
                seed=self.seed_of("update", number),
                extras=extras,
                states=stage.states,
            )
        with clock("sync"):
            if stage.config.rollout.sync == "every_step":
                stage.version += 1
                stage.engine.sync(stage.updater.policy, stage.version)
        if stage.algorithm.condition is not None:
            noted["feedback/cut"] = self.ranks.sums({"cut": stage.feedback_cut})["cut"]
        return Collected(groups, places, batch, stats | noted | {"learning_rate": rate}, clock.seconds)

    def collect(self, number: int, clock: Clock) -> tuple[list[Group], list[int], list[tuple[int, int]], Batch]:
        """(this rank's groups, their ids, (group, rollout) of each row of the batch, the batch), rewarded and selected.

        A selection that drops groups may ask for further prompts until the step has as many as the recipe says.
        """
        stage, wanted = self.stage, self.stage.config.rollout.prompts_per_step
        groups: list[Group] = []
        ids: list[int] = []
        places: list[tuple[int, int]] = []
        batches: list[Batch] = []
        for attempt in itertools.count(1):
            with clock("generate"):
                here, first = self.generate(number, attempt)
            with clock("score"):
                here = score(here, stage.scorers, stage.config.scoring, stage.pool, self.ranks.gather)
                first += (attempt - 1) * wanted
                batch, found, more = self.assemble(here, first, number)
            batches.append(batch)
            ids += range(first, first + len(here))
            places += [(len(groups) + g, i) for g, i in found]
            groups += here
            kept = self.ranks.gather(torch.cat([b.arrays["group_ids"] for b in batches]).unique())
            if attempt >= more or sum(map(len, kept)) >= wanted:
                break
        batch = joined(batches)
        surplus = torch.cat(kept).sort().values[wanted:]
        rows = (~torch.isin(batch.arrays["group_ids"], surplus)).nonzero().squeeze(1).tolist()
        batch, places = chosen(batch, places, rows)
        return groups, ids, places, batch

    def generate(self, number: int, attempt: int = 1) -> tuple[list[Group], int]:
        """This rank's share of the step's prompts, each with its rollouts, and the number of the first of them."""
        stage, config = self.stage, self.stage.config.rollout
        prompts = stage.dealt.batch(stage.drawn, config.prompts_per_step, seed=self.seed_of("data"))
        stage.drawn += 1
        share = torch.arange(len(prompts)).tensor_split(self.ranks.size)[self.ranks.rank].tolist()
        mine = [prompts[i] for i in share]
        if stage.algorithm.condition is not None:
            mine = stage.render(stage.algorithm.condition.refine(stage.memory, mine, self.seed_of("condition", number)))
        again = (attempt,) if attempt > 1 else ()
        seeds = [self.seed_of("rollout", number, i, *again) for i in share]
        rollouts = stage.engine.generate(mine, stage.sampling_now(), config.group_size, seeds)
        if "greedy_rewards" in stage.wants:
            greedy = stage.engine.generate(mine, replace(stage.sampling, temperature=0.0), 1, seeds)
            rollouts = [[*rs, replace(g[0], probe=True)] for rs, g in zip(rollouts, greedy, strict=True)]
        stage.remember_sampling([r for rs in rollouts for r in rs], self.ranks)
        groups = [Group(p, tuple(stage.decoded(r) for r in rs)) for p, rs in zip(mine, rollouts, strict=True)]
        return groups, share[0] if share else 0

    def assemble(self, groups: list[Group], first: int, number: int) -> tuple[Batch, list[tuple[int, int]], int]:
        """Rows under the context they are trained under, rewarded and selected; (group, rollout) of each row; how many
        batches of prompts the selection would take to fill up.
        """
        stage, algorithm = self.stage, self.stage.algorithm
        training: list[list[Prompt | None]] = [[g.prompt] * len(g.rollouts) for g in groups]
        if algorithm.condition is not None:
            everyone = self.ranks.gather(groups)
            before = sum(map(len, everyone[: self.ranks.rank]))
            conditioned, stage.memory = algorithm.condition.apply(stage.memory, [g for part in everyone for g in part])
            training = conditioned[before : before + len(groups)]
        places = [
            (g, i)
            for g, group in enumerate(groups)
            for i in range(len(group.rollouts))
            if training[g][i] is not None and (not group.scores or usable(group.scores[i]))
        ]
        contexts = stage.render([training[g][i] for g, i in places])
        batch = assemble(
            groups,
            places,
            contexts,
            first,
            stage.scorers,
            stage.sampling.temperature,
            stage.wants,
            stage.updater.policy.tokenizer,
        )
        stage.describe(batch, [groups[g].prompt for g, _ in places], [groups[g].rollouts[i] for g, i in places], number)
        if stage.stored_pairs:
            batch.pairs = pairs_of(groups, places)
        if stage.scorers:
            early, _ = early_and_late(algorithm.combine or (weighted_sum,))
            if "greedy_rewards" in stage.wants:
                reward(batch, early, self.ranks, dict(stage.states))  # memories see what is trained on alone
                batch, places = chosen(batch, places, without_probes(batch, self.ranks))
            reward(batch, early, self.ranks, stage.states)
        rows, more = selected(batch, algorithm.select, self.ranks, stage.states)
        return *chosen(batch, places, rows), more

    def extra_batches(
        self, number: int, groups: list[Group], ids: list[int], batch: Batch
    ) -> list[tuple[Extra, Batch]]:
        """The second batches of the step, this rank's rows."""
        out = []
        for extra in self.stage.algorithm.extra:
            rows = self.extra_rows(extra, number, groups, ids)
            if extra.gate is not None:
                gates = on_all_ranks(extra.gate, batch, self.ranks)
                of_group = dict(zip(batch.arrays["group_ids"].tolist(), gates.tolist(), strict=True))
                credit = torch.tensor([of_group.get(g, 0.0) for g in rows.arrays["group_ids"].tolist()])
                rows.arrays["advantages"] = credit[:, None] * rows.arrays["loss_mask"]
            out.append((extra, rows))
        return out

    def extra_rows(self, extra: Extra, number: int, groups: list[Group], ids: list[int]) -> Batch:
        """Stored answers to train on: those that came with this step's prompts, demonstrations, or the first policy's."""
        stage, names = self.stage, {name for part in extra.objective for name in inputs_of(part)}
        if extra.source == "stored":
            answered = stage.stored([g.prompt for g in groups])
        else:
            held = stage.extra_prompts if extra.source == "extra_data" else stage.kept_prompts
            size = min(stage.config.rollout.prompts_per_step, len(held.prompts)) if held is not None else 0
            dealt = held.batch(number, size, seed=self.seed_of("extra")) if size else []
            ids = torch.arange(size).tensor_split(self.ranks.size)[self.ranks.rank].tolist()
            answered = stage.stored([dealt[i] for i in ids])
        scorers = stage.scorers if names & {"rewards", "token_rewards"} else []
        if scorers:
            answered = score(answered, scorers, stage.config.scoring, stage.pool, self.ranks.gather)
        places = [
            (g, i)
            for g, group in enumerate(answered)
            for i in range(len(group.rollouts))
            if not scorers or usable(group.scores[i])
        ]
        contexts, temperature = [answered[g].prompt for g, _ in places], stage.sampling.temperature
        rows = assemble(answered, places, contexts, 0, scorers, temperature)
        rows.arrays["group_ids"] = torch.tensor([ids[g] for g, _ in places], dtype=torch.long)
        if scorers:
            reward(rows, stage.algorithm.combine or (weighted_sum,), self.ranks, dict(stage.states))
            rows.arrays["token_rewards"] = rows.arrays["rewards"][:, None] * last_counted(rows.arrays["loss_mask"])
        if "ref_logprobs" in names:
            rows.arrays["ref_logprobs"] = rows.arrays.pop(
                "rollout_logprobs", torch.zeros(rows.arrays["loss_mask"].shape)
            )
        return rows

    def run_passes(self, batch: Batch) -> None:
        """The passes without gradient that some part of the recipe asks for."""
        stage, policy, names = self.stage, self.stage.updater.policy, self.stage.wants
        budget = stage.config.training.tokens_per_micro_batch
        kept = {name: name if f"{name}_kl" in names else None for name in ("old", "ref")}
        if "old" in stage.plan:
            asked = {name: f"old_{name}" in stage.planned for name in ("entropy", "values")}
            asked["action_values"] = any(f"old_{name}" in stage.planned for name in ACTION_VALUES)
            got = run_pass(policy, batch, budget, keep_as=kept["old"], **asked)
            batch.arrays |= {f"old_{name}": array for name, array in got.items()}
        if "ref" in stage.plan:
            own = stage.reference is None
            got = run_pass(stage.reference or policy, batch, budget, reference=own, keep_as=kept["ref"])
            batch.arrays["ref_logprobs"] = got["logprobs"]

    def seed_of(self, *what: Any) -> int:
        """A seed for one purpose in this stage: the same on every rank and after every resume."""
        digest = hashlib.blake2b(json.dumps([self.seed, self.stage.index, *what]).encode(), digest_size=6).digest()
        return int.from_bytes(digest, "big")


def chosen(batch: Batch, places: list[tuple[int, int]], rows: list[int]) -> tuple[Batch, list[tuple[int, int]]]:
    """The rows given, and which rollout each of them is."""
    return (batch, places) if len(rows) == len(batch) else (batch.take(rows), [places[i] for i in rows])
