"""From prompts to the batch of a step: sampled, scored, assembled, rewarded, selected."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from llmrl.batch import Batch, joined
from llmrl.clock import Clock
from llmrl.combiners.weighted_sum import weighted_sum
from llmrl.faults import reach
from llmrl.run import StageRun
from llmrl.scoring import Judging, usable
from llmrl.training.assemble import assemble, pairs_of
from llmrl.training.credit import early_and_late, reward, selected, without_probes
from llmrl.training.ranks import Ranks
from llmrl.types import Group, Prompt, Rollout


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
                mine, share = self.deal(number, attempt)
                first, place = share[0] if share else 0, (number, attempt, stage.version)
                here = stage.buffer.read(*place, first, mine) if stage.buffer is not None else None
                judging = self.generate(mine, share, number, attempt) if here is None else None
                reach("generated")
            with clock("score"):
                if judging is not None:
                    here = judging.finish(self.ranks.gather)
                    if stage.buffer is not None:
                        stage.buffer.write(*place, here)
                stage.remember_sampling([r for group in here for r in group.rollouts], self.ranks)
                reach("scored")
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

    def deal(self, number: int, attempt: int) -> tuple[list[Prompt], list[int]]:
        """This rank's share of the step's prompts, under their conditions, and their numbers among all."""
        stage, config = self.stage, self.stage.config.rollout
        prompts = stage.dealt.batch(stage.drawn, config.prompts_per_step, seed=self.seed_of("data"))
        stage.drawn += 1
        share = torch.arange(len(prompts)).tensor_split(self.ranks.size)[self.ranks.rank].tolist()
        mine = [prompts[i] for i in share]
        if stage.algorithm.condition is not None:
            mine = stage.render(stage.algorithm.condition.refine(stage.memory, mine, self.seed_of("condition", number)))
        return mine, share

    def generate(self, mine: list[Prompt], share: list[int], number: int, attempt: int) -> Judging:
        """Sample answers to the prompts and have each group judged as soon as it is complete.

        share: their numbers among those of all ranks.
        """
        stage, config = self.stage, self.stage.config.rollout
        judging = Judging(stage.scorers, stage.config.scoring, stage.pool)
        again = (attempt,) if attempt > 1 else ()
        seeds = [self.seed_of("rollout", number, i, *again) for i in share]
        probes: list[list[Rollout]] = [[] for _ in mine]
        if "greedy_rewards" in stage.wants:
            greedy = stage.engine.generate(mine, replace(stage.sampling, temperature=0.0), 1, seeds)
            probes = [[replace(g[0], probe=True)] for g in greedy]

        def finished(ended: dict[int, list[Rollout]]) -> None:
            judging.add({g: Group(mine[g], tuple(map(stage.decoded, [*rs, *probes[g]]))) for g, rs in ended.items()})
            judging.look()

        rollouts = stage.engine.generate(mine, stage.sampling_now(), config.group_size, seeds, finished)
        finished({g: rs for g, rs in enumerate(rollouts) if g not in judging.groups})
        return judging

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
