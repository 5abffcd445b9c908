"""The training loop: one for online, offline and mixed training. It knows stages, never methods."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llmrl.ahead import ages
from llmrl.batch import Batch
from llmrl.clock import Clock
from llmrl.collect import Collector, chosen
from llmrl.errors import RecipeError
from llmrl.faults import reach
from llmrl.observe import Collected
from llmrl.policy.forward import ACTION_VALUES
from llmrl.run import StageRun
from llmrl.second_batches import second_batches
from llmrl.training.credit import assign_credit, diagnosed, early_and_late, reward, selected
from llmrl.training.passes import run_pass
from llmrl.training.ranks import Ranks
from llmrl.training.schedule import learning_rate


@dataclass
class Loop:
    """A stage in training. hold: called when the weights begin to change."""

    stage: StageRun
    ranks: Ranks
    seed: int
    hold: Callable[[], None] = lambda: None

    def step(self, number: int) -> Collected:
        """One step, from prompts to new weights in the engine."""
        stage, clock = self.stage, Clock()
        groups, ids, places, batch = Collector(stage, self.ranks, self.seed_of).collect(number, clock)
        ahead = stage.config.rollout.staleness
        aged = ages(batch.arrays["staleness"], self.ranks, ahead) if ahead else {}
        with clock("passes"):
            self.run_passes(batch)
            reward(batch, early_and_late(stage.algorithm.combine)[1], self.ranks, stage.states)
            assign_credit(batch, stage.algorithm, self.ranks, stage.states)
            rows, _ = selected(batch, stage.algorithm.select, self.ranks, stage.states, at="credited")
            batch, places = chosen(batch, places, rows)
            if stage.paired and batch.pairs is None:
                raise RecipeError(
                    "algorithm.objective: its loss looks at pairs of rollouts, and no selection made any. Set "
                    "algorithm.select, such as best_worst_pairs."
                )
            noted = diagnosed(batch, stage.algorithm.diagnostics, self.ranks)
            prompts = [group.prompt for group in groups]
            extras = second_batches(stage, self.ranks, prompts, ids, batch, number, self.seed_of("extra"))
            reach("passed")
        self.hold()
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
                if not ahead:  # else once nothing is left to be sampled by the weights that it has
                    stage.engine.sync(stage.updater.policy, stage.version)
        if stage.algorithm.condition is not None:
            noted["feedback/cut"] = self.ranks.sums({"cut": stage.feedback_cut})["cut"]
        noted |= self.ranks.sums(getattr(stage.engine, "measured", dict)())
        return Collected(groups, places, batch, stats | noted | aged | {"learning_rate": rate}, clock.seconds)

    def run_passes(self, batch: Batch) -> None:
        """The passes without gradient that some part of the recipe asks for."""
        stage, policy, names = self.stage, self.stage.updater.policy, self.stage.wants
        budget = stage.updater.settings.tokens_per_micro_batch
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
