"""Stored answers that are trained on in the same update as the rollouts."""

from __future__ import annotations

import torch

from llmrl.algorithm import Extra
from llmrl.batch import Batch
from llmrl.catalog import inputs_of
from llmrl.combiners.weighted_sum import weighted_sum
from llmrl.ops.masked import last_counted
from llmrl.run import StageRun
from llmrl.scoring import score, usable
from llmrl.training.assemble import assemble
from llmrl.training.credit import on_all_ranks, reward
from llmrl.training.ranks import Ranks
from llmrl.types import Prompt


def second_batches(
    stage: StageRun, ranks: Ranks, prompts: list[Prompt], ids: list[int], batch: Batch, number: int, seed: int
) -> list[tuple[Extra, Batch]]:
    """The second batches of a step, this rank's rows. prompts, ids: those of this rank's groups; batch: their rollouts."""
    out = []
    for extra in stage.algorithm.extra:
        rows = answers(extra, stage, ranks, prompts, ids, number, seed)
        if extra.gate is not None:
            gates = on_all_ranks(extra.gate, batch, ranks)
            of_group = dict(zip(batch.arrays["group_ids"].tolist(), gates.tolist(), strict=True))
            credit = torch.tensor([of_group.get(g, 0.0) for g in rows.arrays["group_ids"].tolist()])
            rows.arrays["advantages"] = credit[:, None] * rows.arrays["loss_mask"]
        out.append((extra, rows))
    return out


def answers(
    extra: Extra, stage: StageRun, ranks: Ranks, prompts: list[Prompt], ids: list[int], number: int, seed: int
) -> Batch:
    """Stored answers to train on: those that came with this step's prompts, demonstrations, or the first policy's."""
    names = {name for part in extra.objective for name in inputs_of(part)}
    if extra.source == "stored":
        answered = stage.stored(prompts)
    else:
        held = stage.extra_prompts if extra.source == "extra_data" else stage.kept_prompts
        size = min(stage.config.rollout.prompts_per_step, len(held.prompts)) if held is not None else 0
        dealt = held.batch(number, size, seed=seed) if size else []
        ids = torch.arange(size).tensor_split(ranks.size)[ranks.rank].tolist()
        answered = stage.stored([dealt[i] for i in ids])
    scorers = stage.scorers if names & {"rewards", "token_rewards"} else []
    if scorers:
        if stage.ahead is not None:
            stage.ahead.drain()  # the processes of the scorers are its own until then
        answered = score(answered, scorers, stage.config.scoring, stage.pool, ranks.gather)
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
        reward(rows, stage.algorithm.combine or (weighted_sum,), ranks, dict(stage.states))
        rows.arrays["token_rewards"] = rows.arrays["rewards"][:, None] * last_counted(rows.arrays["loss_mask"])
    if "ref_logprobs" in names:
        rows.arrays["ref_logprobs"] = rows.arrays.pop("rollout_logprobs", torch.zeros(rows.arrays["loss_mask"].shape))
    return rows
