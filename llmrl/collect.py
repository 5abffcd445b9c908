"""From prompts to the batch of a step: sampled, scored, assembled, rewarded, selected."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from llmrl.ahead import Begun
from llmrl.batch import Batch, joined
from llmrl.clock import Clock
from llmrl.combiners.weighted_sum import weighted_sum
from llmrl.faults import reach
from llmrl.run import StageRun
from llmrl.scoring import Judging, faults, refuse, usable
from llmrl.training.assemble import assemble, pairs_of
from llmrl.training.buffer import Dealt
from llmrl.training.credit import early_and_late, reward, selected, without_probes
from llmrl.training.ranks import Ranks
from llmrl.types import Group, Prompt, Rollout, Sampling


@dataclass
class Collector:
    """What makes the rollouts of a stage's steps. seed_of: a seed for a purpose, the same on every rank."""

    stage: StageRun
    ranks: Ranks
    seed_of: Callable[..., int]

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
                judging = None
                if stage.ahead is not None and attempt == 1:
                    begun = self.from_ahead(number)
                    dealt, here, stored = begun.dealt, begun.groups.result(), begun.stored
                else:
                    stage.catch_up()
                    dealt = self.deal(number, attempt)
                    here = stage.buffer.read(dealt) if stage.buffer is not None else None
                    stored = here is not None
                    judging = None if stored else self.generate(dealt, stage.sampling_now())
                reach("generated")
            with clock("score"):
                if judging is not None:
                    here = judging.scored()
                refuse(self.ranks.gather(faults(here)), stage.config.scoring)
                if not stored and stage.buffer is not None:
                    stage.buffer.write(dealt, here)
                if stage.ahead is not None and attempt == 1:
                    # not before the buffer has it: a checkpoint asks for it here or there
                    del stage.ahead.begun[number]
                stage.remember_sampling([r for group in here for r in group.rollouts], self.ranks)
                reach("scored")
                first = dealt.first + (attempt - 1) * wanted
                batch, found, more = self.assemble(here, first, number)
            batches.append(batch)
            ids += range(first, first + len(here))
            places += [(len(groups) + g, i) for g, i in found]
            groups += here
            kept = self.ranks.gather(torch.cat([b.arrays["group_ids"] for b in batches]).unique())
            if attempt >= more or sum(map(len, kept)) >= wanted:
                break
        if stage.ahead is not None:
            with clock("sync"):
                self.go_ahead(number)
        batch = joined(batches)
        surplus = torch.cat(kept).sort().values[wanted:]
        rows = (~torch.isin(batch.arrays["group_ids"], surplus)).nonzero().squeeze(1).tolist()
        batch, places = chosen(batch, places, rows)
        return groups, ids, places, batch

    def deal(self, number: int, attempt: int = 1, drawn: int | None = None) -> Dealt:
        """This rank's share of the step's prompts, under their conditions. drawn: for those of an earlier deal."""
        stage, config = self.stage, self.stage.config.rollout
        if drawn is None:
            drawn = stage.drawn
            stage.drawn += 1
        prompts = stage.dealt.batch(drawn, config.prompts_per_step, seed=self.seed_of("data"))
        share = torch.arange(len(prompts)).tensor_split(self.ranks.size)[self.ranks.rank].tolist()
        mine = [prompts[i] for i in share]
        if stage.algorithm.condition is not None:
            mine = stage.render(stage.algorithm.condition.refine(stage.memory, mine, self.seed_of("condition", number)))
        return Dealt(number, attempt, drawn, stage.version, mine, share)

    def generate(self, dealt: Dealt, sampling: Sampling, breathe: Callable[[], None] = lambda: None) -> Judging:
        """Sample answers to the prompts and have each group judged as soon as it is complete.

        breathe: called now and then; what it raises ends the sampling.
        """
        stage, mine = self.stage, dealt.prompts
        judging = Judging(stage.scorers, stage.config.scoring, stage.pool, breathe)
        again = (dealt.attempt,) if dealt.attempt > 1 else ()
        seeds = [self.seed_of("rollout", dealt.number, i, *again) for i in dealt.places]
        probes: list[list[Rollout]] = [[] for _ in mine]
        if "greedy_rewards" in stage.wants:
            greedy = stage.engine.generate(mine, replace(stage.sampling, temperature=0.0), 1, seeds)
            probes = [[replace(g[0], probe=True)] for g in greedy]

        def finished(ended: dict[int, list[Rollout]]) -> None:
            breathe()
            judging.add({g: Group(mine[g], tuple(map(stage.decoded, [*rs, *probes[g]]))) for g, rs in ended.items()})
            judging.look()

        rollouts = stage.engine.generate(mine, sampling, stage.config.rollout.group_size, seeds, finished)
        finished({g: rs for g, rs in enumerate(rollouts) if g not in judging.groups})
        return judging

    def from_ahead(self, number: int) -> Begun:
        """The step, begun now if it was not, with all its answers."""
        ahead = self.stage.ahead
        if number not in ahead.begun:
            self.stage.catch_up()
            again = [replace(self.deal(n, drawn=drawn), version=version) for n, drawn, version in ahead.owed]
            self.begin(again or [self.deal(number)])
            ahead.owed = []
        return ahead.wait_for(number)

    def go_ahead(self, number: int) -> None:
        """Begin the next steps by the weights of now, unless some are left of those begun before."""
        ahead = self.stage.ahead
        if not ahead.begun:
            self.stage.catch_up()
            last = min(number + ahead.steps, self.stage.steps - 1)
            self.begin([self.deal(n) for n in range(number + 1, last + 1)])

    def begin(self, batches: list[Dealt]) -> None:
        """Have the thread answer those that the buffer does not hold."""
        stage, sampling = self.stage, self.stage.sampling_now()
        found = []
        for dealt in batches:
            groups = stage.buffer.read(dealt) if stage.buffer is not None else None
            if groups is None and dealt.version != stage.version:
                stage.buffer.log.say(
                    f"careful: what older weights had answered for step {dealt.number + 1} is gone; those of now answer again"
                )
                dealt = replace(dealt, version=stage.version)
            found.append((dealt, groups))
        stage.ahead.begin(found, lambda dealt: self.generate(dealt, sampling, stage.ahead.breathe).scored())

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


def chosen(batch: Batch, places: list[tuple[int, int]], rows: list[int]) -> tuple[Batch, list[tuple[int, int]]]:
    """The rows given, and which rollout each of them is."""
    return (batch, places) if len(rows) == len(batch) else (batch.take(rows), [places[i] for i in rows])
