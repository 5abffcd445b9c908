"""Measuring a policy on held-out prompts, with intervals."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from llmrl.config import Named, Scoring
from llmrl.errors import DataError, RecipeError
from llmrl.ops.intervals import Interval, clustered, wilson
from llmrl.scoring import Scorer, score
from llmrl.types import Group, Prompt, Rollout, Sampling, Score

if TYPE_CHECKING:
    from llmrl.rollout.engine import Engine

RIGHT = 0.5  # a value from here on counts as right in the records


@dataclass(frozen=True)
class Benchmark:
    """A published measurement as data: what is asked, how it is sampled and who judges.

    data: the keys of a recipe's data section. protocol: id and version of prompt and scorer; numbers measured under
    different protocols do not compare.
    """

    protocol: str
    data: dict[str, Any]
    scorers: list[Named]
    num_samples: int
    sampling: Sampling


@dataclass(frozen=True)
class Evaluation:
    """What was measured. accuracy, low and high are None when no rollout could be judged.

    accuracy: mean value of the first scorer over the `num` rollouts that it judged; [low, high]: 95 % interval.
    errors: rollouts that it failed on; they count neither as right nor as wrong. mean_length: in tokens. truncated:
    share cut by the token limit. records: one dict a rollout, plain data.
    """

    accuracy: float | None
    low: float | None
    high: float | None
    num: int
    errors: int
    mean_length: float
    truncated: float
    records: list[dict[str, Any]] = field(repr=False)

    def metrics(self, name: str) -> dict[str, float]:
        """{'eval/<name>/accuracy': …, …}: every number that could be measured."""
        numbers = {key: value for key, value in vars(self).items() if key != "records" and value is not None}
        return {f"eval/{name}/{key}": value for key, value in numbers.items()}


def evaluate(
    engine: Engine,
    prompts: Sequence[Prompt],
    scorers: Sequence[Scorer],
    sampling: Sampling,
    *,
    num_samples: int,
    seed: int,
    decode: Callable[[Sequence[int]], str],
    batch: int = 64,
) -> Evaluation:
    """Sample `num_samples` answers to each rendered prompt, `batch` prompts at a time, and judge them.

    A prompt's samples depend on seed and prompt id, not on `batch` or the other prompts. decode: token ids -> text.
    Errors of scorers never stop it. Raises DataError without prompts, RecipeError without scorers.
    """
    if not prompts:
        raise DataError("evaluation: no prompts; expected at least one. Look at data.split and limit.")
    if not scorers:
        raise RecipeError("evaluation: no scorers; expected at least one, the first gives the accuracy.")
    groups: list[Group] = []
    for start in range(0, len(prompts), batch):
        some = prompts[start : start + batch]
        answers = engine.generate(some, sampling, num_samples, [seed_of(seed, prompt.id) for prompt in some])
        for prompt, rollouts in zip(some, answers, strict=True):
            groups.append(Group(prompt, tuple(replace(r, text=decode(r.ids)) for r in rollouts)))
    return measured(score(groups, scorers, Scoring(max_error_share=1.0)), scorers[0].name)


def measured(groups: Sequence[Group], judge: str) -> Evaluation:
    """The numbers of scored groups, by the scorer named `judge`."""
    rows = [(g.prompt, r, s) for g in groups for r, s in zip(g.rollouts, g.scores, strict=True)]
    values: dict[str, list[float]] = {}
    for prompt, _, scores in rows:
        if scores[judge].value is not None:
            values.setdefault(prompt.id, []).append(scores[judge].value)
    found = interval(list(values.values()))
    return Evaluation(
        accuracy=found and found.mean,
        low=found and found.low,
        high=found and found.high,
        num=sum(len(some) for some in values.values()),
        errors=sum(scores[judge].error is not None for _, _, scores in rows),
        mean_length=math.fsum(len(rollout.ids) for _, rollout, _ in rows) / len(rows),
        truncated=sum(rollout.truncated for _, rollout, _ in rows) / len(rows),
        records=[record(p, r, scores) | {"correct": correct(scores[judge])} for p, r, scores in rows],
    )


def interval(values: Sequence[Sequence[float]]) -> Interval | None:
    """Mean and interval of values listed by prompt; None without any.

    Wilson's for 0/1 values with one a prompt. Else clustered by prompt, and cut to [0, 1] where the values are; when
    all are 0 or all are 1 there is no spread to go by, and Wilson's over the prompts stands in.
    """
    flat = [value for some in values for value in some]
    if not flat:
        return None
    single = len(flat) == len(values)
    if set(flat) <= {0.0, 1.0} and (single or len(set(flat)) == 1):
        return wilson(flat[0] * len(values) if not single else sum(flat), len(values))
    found = clustered(values)
    if min(flat) < 0 or max(flat) > 1:
        return found
    return Interval(found.mean, max(found.low, 0.0), min(found.high, 1.0))


def correct(score: Score) -> bool | None:
    """Whether a score counts as right; None when it could not be judged."""
    return None if score.value is None else score.value >= RIGHT


def record(prompt: Prompt, rollout: Rollout, scores: dict[str, Score]) -> dict[str, Any]:
    """One rollout for the file of records."""
    return {
        "prompt_id": prompt.id,
        "prompt": prompt.question(),
        "feedback": prompt.feedback,
        "text": rollout.text,
        "ids": list(rollout.ids),
        "truncated": rollout.truncated,
        "scores": {name: asdict(one) for name, one in scores.items()},
    }


def seed_of(seed: int, prompt_id: str) -> int:
    """A prompt's own seed, below 2^31."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{prompt_id}".encode()).digest()[:4]) >> 1
