"""From scored groups to rows and their arrays."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from llmrl.batch import Batch
from llmrl.data.steps import laid_on_sampled
from llmrl.errors import DataError
from llmrl.scoring import Scorer
from llmrl.types import Group, Prompt, Rollout, Sample, Score


def assemble(
    groups: Sequence[Group],
    places: Sequence[tuple[int, int]],
    contexts: Sequence[Prompt],
    first_group: int,
    scorers: Sequence[Scorer],
    temperature: float,
    wants: Collection[str] = (),
    tokenizer: Any = None,
) -> Batch:
    """One row a place (group, rollout), trained under the rendered prompt of the same position in `contexts`.

    first_group: number of this rank's first group, so that ids are unique over ranks. rollout_logprobs is there only
    when the engine gave them for every rollout. wants: arrays that some part names; under step_labels only the labelled
    tokens count, step_rewards are found among the tokens with the tokenizer. Raises DataError for an answer without
    the step labels that are wanted.
    """
    rollouts = [groups[g].rollouts[i] for g, i in places]
    samples = [
        Sample(prompt.ids, groups[g].prompt.ids, rollout.ids, rollout.loss_mask or (True,) * len(rollout.ids))
        for (g, _), rollout, prompt in zip(places, rollouts, contexts, strict=True)
    ]
    width = max((len(s.response) for s in samples), default=1)
    values = [[_value(groups[g].scores[i][s.name]) for s in scorers] for g, i in places]
    arrays = {
        "loss_mask": ragged([s.loss_mask for s in samples], width, torch.bool),
        "temperatures": temperatures_of(rollouts, width, temperature if temperature > 0 else 1.0),
        "group_ids": torch.tensor([first_group + g for g, _ in places], dtype=torch.long),
        "truncated": torch.tensor([r.truncated for r in rollouts], dtype=torch.bool),
        "reward_parts": torch.tensor(values, dtype=torch.float32).reshape(len(samples), len(scorers)),
        "margins": torch.tensor([_margin(groups[g].prompt, groups[g].rollouts[i]) for g, i in places]),
    }
    if "step_labels" in wants:
        arrays["step_labels"] = step_labels(rollouts, width)
        arrays["loss_mask"] &= arrays["step_labels"].isfinite()
    if scorers and "step_rewards" in wants:
        arrays["step_rewards"] = step_rewards(
            [(groups[g].rollouts[i], groups[g].scores[i]) for g, i in places], width, scorers, tokenizer
        )
    arrays["lengths"] = arrays["loss_mask"].sum(1)
    if rollouts and all(r.logprobs is not None for r in rollouts):
        arrays["rollout_logprobs"] = ragged([r.logprobs for r in rollouts], width, torch.float32)
    return Batch(samples, arrays, constants={"reward_weights": torch.tensor([s.weight for s in scorers])})


def ragged(rows: Sequence[Sequence], width: int, dtype: torch.dtype) -> Tensor:
    """[B,width], zeros after each row's end."""
    out = torch.zeros(len(rows), width, dtype=dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.tensor(row, dtype=dtype)
    return out


def temperatures_of(rollouts: Sequence[Rollout], width: int, everywhere: float) -> Tensor:
    """[B,width] at which each token was drawn: as the engine reported, else the same one everywhere."""
    out = torch.full((len(rollouts), width), everywhere)
    for row, rollout in enumerate(rollouts):
        if rollout.temperatures is not None:
            out[row, : len(rollout.ids)] = torch.tensor(rollout.temperatures)
    return out


def step_labels(rollouts: Sequence[Rollout], width: int) -> Tensor:
    """[B,width], NaN where no step ends. DataError for a rollout whose data has no labels."""
    out = torch.full((len(rollouts), width), torch.nan)
    for row, rollout in enumerate(rollouts):
        if rollout.stored is None or not rollout.stored.steps:
            raise DataError(
                "the algorithm trains on step labels, and an answer has none. Use the replay engine on data with prompt, "
                "steps and labels (data.format: steps)."
            )
        for place, label in rollout.step_labels:
            out[row, place] = label
    return out


def step_rewards(
    judged: Sequence[tuple[Rollout, dict[str, Score]]], width: int, scorers: Sequence[Scorer], tokenizer: Any
) -> Tensor:
    """[B,width]: Σ over scorers of weight · the value of the step that ends with the token."""
    out = torch.zeros(len(judged), width)
    for row, (rollout, scores) in enumerate(judged):
        for scorer in scorers:
            for place, number in laid_on_sampled(rollout.ids, rollout.text, scores[scorer.name].steps, tokenizer):
                out[row, place] += scorer.weight * number
    return out


def pairs_of(groups: Sequence[Group], places: Sequence[tuple[int, int]]) -> Tensor:
    """[P,2] rows (chosen, rejected), from the labels of stored answers. DataError when a prompt has no such pair."""
    rows: dict[int, dict[str | None, list[int]]] = {}
    for row, (g, i) in enumerate(places):
        stored = groups[g].rollouts[i].stored
        rows.setdefault(g, {}).setdefault(stored.label if stored else None, []).append(row)
    out = []
    for g, found in rows.items():
        chosen, rejected = found.get("chosen", []), found.get("rejected", [])
        if len(chosen) != 1 or len(rejected) != 1:
            raise DataError(
                f"prompt {groups[g].prompt.id}: found {len(chosen)} chosen and {len(rejected)} rejected "
                "answers; expected one of each. Use preference data with the replay engine."
            )
        out.append([chosen[0], rejected[0]])
    return torch.tensor(out, dtype=torch.long).reshape(-1, 2)


def _margin(prompt: Prompt, rollout: Rollout) -> float:
    paired = rollout.stored is not None and rollout.stored.label is not None
    return float(prompt.columns.get("margin", 0.0)) if paired else 0.0


def _value(score: Score) -> float:
    return float("nan") if score.value is None else float(score.value)
