"""Rollouts of every prompt ahead of training: how good the policy is that a stage begins with, and what it says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from llmrl.batch import Batch
from llmrl.combiners.weighted_sum import weighted_sum
from llmrl.durable import write
from llmrl.errors import CheckpointError, DataError, RecipeError
from llmrl.loop import Loop
from llmrl.plan import when
from llmrl.scoring import score, usable
from llmrl.training.assemble import assemble
from llmrl.training.credit import early_and_late, reward
from llmrl.types import Group, Rollout

RIGHT = 1.0  # reward of an answer that is kept; a prompt is mastered when the mean reaches it


def look_ahead(loop: Loop, folder: Path, step: int, now: int) -> None:
    """Make the stage's anchors as of `step`, or read those that an interrupted run has written, and deal the prompts anew.

    now: the step that comes next. Raises CheckpointError when the anchors of an earlier step are gone, DataError when a
    prompt has no judged rollout or the selections leave none to sample from.
    """
    stage = loop.stage
    path = folder / f"reference-{stage.config.name}-{step}.jsonl"
    if not path.exists():
        if now != step:
            raise CheckpointError(f"{path} is missing: the policy of step {step} made it and is gone. Start a new run.")
        store(path, rollouts(loop, step), loop.ranks.main)
        loop.ranks.wait()
    with path.open() as file:
        records = [json.loads(line) for line in file]
    missing = {p.id for p in stage.prompts.prompts} - {r["id"] for r in records}
    if missing:
        raise DataError(
            f"{path.name}: {len(missing)} prompts have no judged rollout, {sorted(missing)[0]} among them. Look at what the "
            "scorers say of their answers, or raise algorithm.before.num_samples."
        )
    stage.anchors = {r["id"]: r["anchor"] for r in records}
    keep = dealt_ids(loop)
    stage.dealt = replace(stage.prompts, prompts=[p for p in stage.prompts.prompts if p.id in keep])
    stage.kept = {
        r["id"]: Rollout(tuple(r["ids"]), r["text"], tuple(r["logprobs"]))
        for r in records
        if r["id"] not in keep and r["ids"] is not None
    }
    stage.kept_prompts = replace(stage.prompts, prompts=[p for p in stage.prompts.prompts if p.id in stage.kept])
    if not stage.dealt.prompts:
        raise DataError(
            f"stage {stage.config.name}: its selections leave none of {len(stage.prompts):,} prompts to sample from; the first "
            "policy's mean reward is the same for all. Use harder or easier data, or leave the selection out."
        )


def dealt_ids(loop: Loop) -> set[str]:
    """The prompts that every selection ahead of sampling keeps."""
    stage = loop.stage
    ids = [p.id for p in stage.prompts.prompts]
    keep = torch.ones(len(ids), dtype=torch.bool)
    anchors = torch.tensor([stage.anchors[i] for i in ids])
    for part in stage.algorithm.select:
        if when(part) == "ahead":
            keep &= part(anchors).keep
    return {i for i, kept in zip(ids, keep.tolist(), strict=True) if kept}


def rollouts(loop: Loop, step: int) -> list[dict[str, Any]]:
    """A record for each prompt of all ranks: its id, mean reward, and tokens, text and log-probabilities of a right answer."""
    stage, ranks = loop.stage, loop.ranks
    size, every = stage.config.rollout.prompts_per_step, stage.prompts.prompts
    if not stage.scorers:
        raise RecipeError(f"stage {stage.config.name}: rollouts ahead of training need scorers, and there are none.")
    out: list[dict[str, Any]] = []
    for start in range(0, len(every), size):
        dealt = every[start : start + size]
        share = torch.arange(len(dealt)).tensor_split(ranks.size)[ranks.rank].tolist()
        seeds = [loop.seed_of("reference", step, start + i) for i in share]
        prompts = [dealt[i] for i in share]
        written = stage.engine.generate(prompts, stage.sampling, stage.algorithm.before.num_samples, seeds)
        groups = [Group(p, tuple(map(stage.decoded, rs))) for p, rs in zip(prompts, written, strict=True)]
        groups = score(groups, stage.scorers, stage.config.scoring, stage.pool, ranks.gather)
        places = [(g, i) for g, group in enumerate(groups) for i, s in enumerate(group.scores) if usable(s)]
        batch = judged(loop, groups, places, step)
        out += records(groups, places, batch.arrays["rewards"].tolist())
    return [r for part in ranks.gather(out) for r in part]


def judged(loop: Loop, groups: list[Group], places: list[tuple[int, int]], step: int) -> Batch:
    """The rollouts as rows with their `rewards`; memories of combiners stay as they were."""
    stage = loop.stage
    contexts, chosen = [groups[g].prompt for g, _ in places], [groups[g].rollouts[i] for g, i in places]
    first = loop.ranks.rank * stage.config.rollout.prompts_per_step
    tokenizer, temperature = stage.updater.policy.tokenizer, stage.sampling.temperature
    batch = assemble(groups, places, contexts, first, stage.scorers, temperature, stage.wants, tokenizer)
    stage.describe(batch, contexts, chosen, step)
    states = {key: part.init() for key, part in stage.algorithm.remembering().items()} | stage.states
    early, _ = early_and_late(stage.algorithm.combine or (weighted_sum,))
    reward(batch, early, loop.ranks, dict(states))
    return batch


def records(groups: list[Group], places: list[tuple[int, int]], rewards: list[float]) -> list[dict[str, Any]]:
    """One a group with a judged rollout."""
    found: dict[int, list[tuple[float, Rollout]]] = {}
    for (g, i), number in zip(places, rewards, strict=True):
        found.setdefault(g, []).append((number, groups[g].rollouts[i]))
    out = []
    for g, judgements in found.items():
        right = next((r for number, r in judgements if number >= RIGHT and r.logprobs is not None), None)
        out.append(
            {
                "id": groups[g].prompt.id,
                "anchor": sum(number for number, _ in judgements) / len(judgements),
                "ids": right and right.ids,
                "text": right and right.text,
                "logprobs": right and right.logprobs,
            }
        )
    return out


def store(path: Path, lines: list[dict[str, Any]], main: bool) -> None:
    """The whole file or nothing, by the first process."""
    if main:
        write(path, "".join(f"{json.dumps(line)}\n" for line in lines).encode())
