"""A trained process reward model as a scorer: a verdict on every step."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from llmrl.data.render import Ids
from llmrl.data.steps import joined, laid_on_written
from llmrl.limits import limits
from llmrl.types import Group, Prompt, Score
from reward_models.rendered import LONGEST, answer, harmless, rendered

if TYPE_CHECKING:
    from llmrl.policy.model import Policy

MOST_STEPS = 256  # of a response


@limits(seconds=3600, memory_gb=None, workers=1, preload=("torch", "transformers", "llmrl.policy.load"))
def process_reward(
    groups: list[Group],
    *,
    path: str,
    verdict_tokens: list[str] | None = None,
    separator: str = "\n",
    tag: str = "\n",
    aggregate: Literal["min", "last", "mean", "product", "none"] = "min",
    batch_tokens: int = 16384,
    device: str = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
) -> list[list[Score]]:
    """How likely each step of a solution is right, and the least of them as its value (arXiv:2412.11006).

    path: folder or hub id of a causal model trained by `process_reward`. verdict_tokens: its tokens for right and wrong,
    as model.verdict_tokens in training; None: the head stored beside it. A response is cut into steps at `separator`,
    and `tag` (data.step_tag in training) is written after each for the model to judge at. aggregate: which value a
    response gets out of its steps; one without steps gets 0, as in the paper's code. 'none': no value, steps alone, for
    the combiner `process_rewards`. A response that is too long for the model is an error of its own.
    Raises ValueError for a model without such a head, ModelError for one that cannot be loaded.
    """
    policy = judge(path, tuple(verdict_tokens or ()), device, precision)
    cuts = [[steps_of(rollout.text, separator) for rollout in group.rollouts] for group in groups]
    failed: dict[tuple[int, int], Score] = {}
    read: dict[tuple[int, int], Read] = {}
    for g, group in enumerate(groups):
        for i, steps in enumerate(cuts[g]):
            try:
                if steps:
                    read[g, i] = laid_out(group.prompt, [step for step, _ in steps], tag, policy)
            except Exception as error:  # noqa: BLE001 - a template raises what it likes; the other rows are judged
                failed[g, i] = Score(None, error=f"{type(error).__name__}: {error}")
    right = dict(zip(read, verdicts(list(read.values()), policy, batch_tokens), strict=True))
    return [
        [
            failed.get((g, i)) or judged([end for _, end in steps], right.get((g, i), []), aggregate, path)
            for i, steps in enumerate(some)
        ]
        for g, some in enumerate(cuts)
    ]


class Read(NamedTuple):
    """A response as the model reads it; tags: where in it a verdict is asked for."""

    context: Ids
    response: Ids
    tags: list[int]


def laid_out(prompt: Prompt, steps: Sequence[str], tag: str, policy: Policy) -> Read:
    """The steps with a tag after each. ValueError for too many steps, or more tokens than the model has positions."""
    from llmrl.policy.forward import base_model

    if len(steps) > MOST_STEPS:
        raise ValueError(f"the response has {len(steps)} steps; at most {MOST_STEPS} are judged")
    if sum(map(len, steps)) > LONGEST:
        raise ValueError(f"the response has {sum(map(len, steps)):,} characters; at most {LONGEST:,} are read")
    longest = getattr(base_model(policy.model).config.get_text_config(), "max_position_embeddings", None)
    text, ends = joined([harmless(step, policy.tokenizer) for step in steps], [0.0] * len(steps), tag)
    prompt = prompt.conditioned(None)
    context, response = rendered(prompt, text, policy.tokenizer, longest)
    written = replace(answer(prompt, text, policy.tokenizer), steps=ends)
    tags = [place for place, _ in laid_on_written(prompt, written, response, policy.tokenizer)]
    return Read(context, response[: tags[-1] + 1], tags)  # what follows the last tag is not read


def verdicts(rows: Sequence[Read], policy: Policy, budget: int) -> list[list[float]]:
    """The probability of 'right' at every tag of each row; at most `budget` tokens are forwarded at once."""
    import torch

    from llmrl.policy.forward import Rows
    from llmrl.training.micro_batches import split

    out: list[list[float]] = [[] for _ in rows]
    lengths = [len(row.response) for row in rows]
    for batch in split([[i] for i in range(len(rows))], [r.context for r in rows], lengths, budget, policy.shared):
        masks = [[t in tags for t in range(lengths[i])] for i in batch for tags in [set(rows[i].tags)]]
        some = Rows([rows[i].context for i in batch], [rows[i].response for i in batch], masks, [1.0] * len(batch))
        with torch.inference_mode():
            scores = policy.statistics(some, max(lengths[i] for i in batch), scores=True, logprobs=False)["scores"]
        for i, row in zip(batch, scores.sigmoid().cpu(), strict=True):
            out[i] = row[rows[i].tags].tolist()
    return out


def steps_of(text: str, separator: str) -> list[tuple[str, int]]:
    """(step, characters of the text up to its end) of what stands between separators and is not blank."""
    found, start = [], 0
    for piece in text.split(separator):
        end = min(start + len(piece) + len(separator), len(text))
        if piece.strip():
            found.append((piece, end))
        start = end
    return found


def judged(ends: Sequence[int], right: Sequence[float], how: str, path: str) -> Score:
    """The Score of a response from the probabilities that its steps are right."""
    value = None if how == "none" else aggregated(right, how)
    evidence = {"model": path[-200:], "aggregate": how, "num_steps": len(right)}
    return Score(value, evidence=evidence, steps=tuple(zip(ends, right, strict=True)))


def aggregated(right: Sequence[float], how: str) -> float:
    """The 'min', 'last', 'mean' or 'product' of some steps; 0 without a step."""
    if not right:
        return 0.0
    ways = {"min": min, "last": lambda n: n[-1], "mean": lambda n: math.fsum(n) / len(n), "product": math.prod}
    return float(ways[how](right))


@functools.cache
def judge(path: str, verdict_tokens: tuple[str, ...], device: str, precision: str) -> Policy:
    """The model with what gives its scores, loaded once a process."""
    import torch

    from llmrl.config import Model
    from llmrl.policy.load import load_policy

    model = Model(path=path, verdict_tokens=list(verdict_tokens), precision=precision)
    policy = load_policy(model, Path(), seed=0, scores=True)
    head = policy.module.score_head
    if head is not None and not bool(head.weight.any()):
        raise ValueError(
            f"{path} has no score_head.safetensors; set verdict_tokens as model.verdict_tokens was in training"
        )
    policy.module.requires_grad_(False)
    policy.module.to(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    return policy


def best_of_n(scores: Sequence[Sequence[float]], correct: Sequence[Sequence[bool]]) -> list[bool]:
    """Whether the highest-scored of each problem's responses is right; the first of equals is taken.

    Both: a list a problem with one entry a response. Raises ValueError where they differ in shape or one is empty.
    """
    if [len(s) for s in scores] != [len(c) for c in correct] or not all(scores):
        raise ValueError("scores and correct have to hold one entry a response, at least one a problem")
    return [
        bool(right[max(range(len(some)), key=lambda i: some[i])]) for some, right in zip(scores, correct, strict=True)
    ]
