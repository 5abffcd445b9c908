"""The training loop: one for online, offline and mixed training. It knows stages, never methods."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from llmrl.batch import Batch
from llmrl.combiners.weighted_sum import weighted_sum
from llmrl.observe import Collected
from llmrl.run import StageRun
from llmrl.scoring import score, usable
from llmrl.training.assemble import assemble, pairs_of
from llmrl.training.credit import assign_credit, needs_passes, reward, selected
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
        with clock("generate"):
            groups, first = self.generate(number)
        with clock("score"):
            groups = score(groups, stage.scorers, stage.config.scoring, stage.pool, self.ranks.gather)
            batch, places = self.assemble(groups, first)
        with clock("passes"):
            self.run_passes(batch)
            reward(batch, [part for part in stage.algorithm.combine if needs_passes(part)], self.ranks)
            assign_credit(batch, stage.algorithm, self.ranks)
        with clock("update"):
            rate = learning_rate(stage.config.training, number, stage.steps)
            stats = stage.updater.update(
                batch, stage.algorithm, learning_rate=rate, seed=self.seed_of("update", number)
            )
        with clock("sync"):
            if stage.config.rollout.sync == "every_step":
                stage.version += 1
                stage.engine.sync(stage.updater.policy, stage.version)
        if stage.algorithm.condition is not None:
            stats["feedback/cut"] = self.ranks.sums({"cut": stage.feedback_cut})["cut"]
        return Collected(groups, places, batch, stats | {"learning_rate": rate}, clock.seconds)

    def generate(self, number: int) -> tuple[list[Group], int]:
        """This rank's share of the step's prompts, each with its rollouts, and the number of the first of them."""
        stage, config = self.stage, self.stage.config.rollout
        prompts = stage.prompts.batch(number, config.prompts_per_step, seed=self.seed_of("data"))
        share = torch.arange(len(prompts)).tensor_split(self.ranks.size)[self.ranks.rank].tolist()
        mine = [prompts[i] for i in share]
        if stage.algorithm.condition is not None:
            mine = stage.render(stage.algorithm.condition.refine(stage.memory, mine, self.seed_of("condition", number)))
        seeds = [self.seed_of("rollout", number, i) for i in share]
        rollouts = stage.engine.generate(mine, stage.sampling, config.group_size, seeds)
        groups = [Group(p, tuple(stage.decoded(r) for r in rs)) for p, rs in zip(mine, rollouts, strict=True)]
        return groups, share[0] if share else 0

    def assemble(self, groups: list[Group], first: int) -> tuple[Batch, list[tuple[int, int]]]:
        """Rows under the context they are trained under, rewarded and selected; (group, rollout) of each row."""
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
        if stage.paired:
            batch.pairs = pairs_of(groups, places)
        if stage.scorers:
            combine = algorithm.combine or (weighted_sum,)
            reward(batch, [part for part in combine if not needs_passes(part)], self.ranks)
        rows = selected(batch, algorithm.select, self.ranks)
        return (batch, places) if len(rows) == len(batch) else (batch.take(rows), [places[i] for i in rows])

    def run_passes(self, batch: Batch) -> None:
        """The passes without gradient that some part of the recipe asks for."""
        stage, policy = self.stage, self.stage.updater.policy
        budget = stage.config.training.tokens_per_micro_batch
        if "old" in stage.plan:
            got = run_pass(
                policy, batch, budget, entropy="old_entropy" in stage.wants, values="old_values" in stage.wants
            )
            batch.arrays |= {f"old_{name}": array for name, array in got.items()}
        if "ref" in stage.plan:
            got = run_pass(stage.reference or policy, batch, budget, reference=stage.reference is None)
            batch.arrays["ref_logprobs"] = got["logprobs"]

    def seed_of(self, *what: Any) -> int:
        """A seed for one purpose in this stage: the same on every rank and after every resume."""
        digest = hashlib.blake2b(json.dumps([self.seed, self.stage.index, *what]).encode(), digest_size=6).digest()
        return int.from_bytes(digest, "big")
