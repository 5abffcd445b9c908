"""Measuring a policy on held-out prompts: sampling, judging, and the numbers with their intervals."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from llmrl.config import Named, Scoring
from llmrl.data.read import Row
from llmrl.errors import DataError, RecipeError
from llmrl.ops.intervals import Interval, clustered, wilson
from llmrl.ops.several import majority_at_k, pass_at_k
from llmrl.pool import Pool
from llmrl.scoring import Scorer, score
from llmrl.types import Group, Prompt, Rollout, Sampling, Score

if TYPE_CHECKING:
    from llmrl.rollout.engine import Engine

RIGHT = 0.5  # a value from here on counts as right
AT_ONCE = 256  # samples asked of an engine, and judged, in one go
TOLERANT = Scoring(max_error_share=1.0)


@dataclass(frozen=True)
class Benchmark:
    """A published measurement as data: what is asked, how it is sampled and who judges.

    data: the keys of a recipe's data section. protocol: id and version of prompt and scorer; numbers measured under
    different protocols do not compare. scorers: the first gives the accuracy. adapt: a row of any published copy as
    the benchmark's own columns, None for a row that is not part of it; raises DataError. num_rows: how many it has.
    """

    protocol: str
    data: dict[str, Any]
    scorers: list[Named]
    num_samples: int
    sampling: Sampling
    num_rows: int | None = None
    adapt: Callable[[Row], Row | None] | None = None


@dataclass(frozen=True)
class Judged:
    """One answer as the metrics see it, plain data.

    value: of the first scorer; None with an error, or where it does not apply. tokens, truncated: None where not known.
    answered: whether it holds an answer; answer: equal for siblings that say the same; both None where no scorer tells.
    """

    prompt_id: str
    value: float | None
    error: str | None
    tokens: int | None
    truncated: bool | None
    answered: bool | None
    answer: int | str | None


@dataclass(frozen=True)
class Evaluation:
    """What was measured. accuracy, low and high are None when no answer could be judged.

    accuracy: mean value of the first scorer over the `num` answers that it judged, which over k samples a prompt is
    avg@k; [low, high]: 95 % interval. errors: answers that it failed on; they count neither as right nor as wrong.
    tokens, mean_length: of all answers. truncated: share cut by the token limit. unanswered: share without an answer.
    pass_at, majority_at: {k: interval} for powers of two up to the samples of a prompt, and for all of them, over the
    prompts with k judged samples; see `llmrl.ops.several`. records: one dict a rollout, plain data.
    """

    accuracy: float | None
    low: float | None
    high: float | None
    num: int
    num_prompts: int
    errors: int
    tokens: int | None
    mean_length: float | None
    truncated: float | None
    unanswered: float | None
    pass_at: dict[int, Interval]
    majority_at: dict[int, Interval]
    records: Sequence[dict[str, Any]] = field(default=(), repr=False)

    def metrics(self, name: str) -> dict[str, float]:
        """{'eval/<name>/accuracy': …, 'eval/<name>/pass@4': …}: every number that could be measured."""
        numbers = {key: value for key, value in vars(self).items() if isinstance(value, int | float)}
        numbers |= {f"pass@{k}": found.mean for k, found in self.pass_at.items()}
        numbers |= {f"maj@{k}": found.mean for k, found in self.majority_at.items()}
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
    pool: Pool,
) -> Evaluation:
    """Sample `num_samples` answers to each rendered prompt and judge them. decode: token ids -> text.

    Errors of scorers never stop it. Raises DataError without prompts, RecipeError without scorers.
    """
    if not scorers:
        raise RecipeError("evaluation: no scorers; expected at least one, the first gives the accuracy.")
    answers = generate(engine, prompts, sampling, num_samples=num_samples, seed=seed, decode=decode)
    groups = list(judge(answers, scorers, pool))
    judge_name = scorers[0].name
    records = [
        record(group.prompt, rollout, scores) | {"correct": correct(scores[judge_name])}
        for group in groups
        for rollout, scores in zip(group.rollouts, group.scores, strict=True)
    ]
    return replace(measured(row for group in groups for row in judged(group, judge_name)), records=records)


def generate(
    engine: Engine,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    num_samples: int,
    seed: int,
    decode: Callable[[Sequence[int]], str],
) -> Iterator[Group]:
    """Sampled answers to each prompt, in order, a few prompts at a time.

    A prompt's samples depend on seed and prompt id, not on the other prompts. Raises DataError without prompts.
    """
    if not prompts:
        raise DataError("evaluation: no prompts; expected at least one. Look at data.split and limit.")
    size = max(1, AT_ONCE // num_samples)
    for start in range(0, len(prompts), size):
        some = prompts[start : start + size]
        answers = engine.generate(some, sampling, num_samples, [seed_of(seed, prompt.id) for prompt in some])
        for prompt, rollouts in zip(some, answers, strict=True):
            yield Group(prompt, tuple(replace(r, text=decode(r.ids)) for r in rollouts))


def judge(groups: Iterable[Group], scorers: Sequence[Scorer], pool: Pool) -> Iterator[Group]:
    """The groups with their scores, some at a time. Whatever goes wrong is an error in the score."""
    waiting: list[Group] = []
    for group in groups:
        waiting.append(group)
        if sum(len(one.rollouts) for one in waiting) >= AT_ONCE:
            yield from score(waiting, scorers, TOLERANT, pool)
            waiting = []
    if waiting:
        yield from score(waiting, scorers, TOLERANT, pool)


def judged(group: Group, judge: str) -> list[Judged]:
    """What the metrics need of a scored group, by the scorer named `judge`.

    Which answers are the same is said by any scorer's evidence 'class', else by the text that `judge` has 'read'.
    """
    classes = next((found for name in group.scores[0] if (found := said(group, name, "class"))), None)
    answers = classes or said(group, judge, "read") or [(None, None)] * len(group.rollouts)
    return [
        Judged(
            prompt_id=group.prompt.id,
            value=scores[judge].value,
            error=scores[judge].error,
            tokens=len(rollout.ids) or None,
            truncated=rollout.truncated if rollout.ids else None,
            answered=answered,
            answer=answer,
        )
        for rollout, scores, (answered, answer) in zip(group.rollouts, group.scores, answers, strict=True)
    ]


def said(group: Group, name: str, key: str) -> list[tuple[bool | None, int | str | None]] | None:
    """(answered, answer) of each rollout out of a scorer's evidence; None where a score without an error lacks the key."""
    found: list[tuple[bool | None, int | str | None]] = []
    for scores in group.scores:
        one = scores[name]
        if key not in one.evidence and one.error is None:
            return None
        answer = one.evidence.get(key)
        answered = None if key not in one.evidence else answer is not None
        found.append((answered, answer if isinstance(answer, int | None) else str(answer)))
    return found if any(answered is not None for answered, _ in found) else None


def measured(answers: Iterable[Judged]) -> Evaluation:
    """The numbers of judged answers; answers of one prompt share its id. Raises DataError without any."""
    rows = list(answers)
    if not rows:
        raise DataError("evaluation: no answers; expected at least one.")
    by_prompt: dict[str, list[Judged]] = {}
    for row in rows:
        by_prompt.setdefault(row.prompt_id, []).extend([row] if row.value is not None else [])
    values = [[row.value for row in some] for some in by_prompt.values()]
    found = interval(values)
    lengths = [row.tokens for row in rows if row.tokens is not None]
    return Evaluation(
        accuracy=found and found.mean,
        low=found and found.low,
        high=found and found.high,
        num=sum(map(len, values)),
        num_prompts=len(by_prompt),
        errors=sum(row.error is not None for row in rows),
        tokens=sum(lengths) if lengths else None,
        mean_length=sum(lengths) / len(lengths) if lengths else None,
        truncated=share([row.truncated for row in rows]),
        unanswered=share([not row.answered for row in rows if row.answered is not None]),
        pass_at=at_each(list(by_prompt.values()), lambda some, k: pass_at_k(len(some), sum(map(is_right, some)), k)),
        majority_at=at_each(
            [some for some in by_prompt.values() if all(r.answered is not None for r in some)], majority
        ),
    )


def at_each(
    prompts: Sequence[Sequence[Judged]], metric: Callable[[Sequence[Judged], int], float]
) -> dict[int, Interval]:
    """{k: the metric's mean over the prompts with at least k answers}, for powers of two from 2 and the most there are."""
    most = max(map(len, prompts), default=0)
    numbers = sorted({most, *itertools.takewhile(lambda k: k <= most, (2**i for i in range(1, 31)))} - {0, 1})
    return {k: interval([[metric(some, k)] for some in prompts if len(some) >= k]) for k in numbers}


def majority(some: Sequence[Judged], k: int) -> float:
    """`majority_at_k` of a prompt's answers; an answer is right if the first sample that gave it is."""
    first: dict[Any, Judged] = {}
    for row in some:
        first.setdefault(row.answer, row)
    right = [answer for answer, row in first.items() if answer is not None and is_right(row)]
    return majority_at_k([row.answer for row in some], right, k)


def is_right(row: Judged) -> bool:
    return row.value is not None and row.value >= RIGHT


def share(flags: Sequence[bool | None]) -> float | None:
    """Share of true ones among those known; None where none is."""
    known = [flag for flag in flags if flag is not None]
    return sum(known) / len(known) if known else None


def interval(values: Sequence[Sequence[float]]) -> Interval | None:
    """Mean and interval of values listed by prompt; None without any.

    Wilson's for 0/1 values with one a prompt. Else clustered by prompt, and cut to [0, 1] where the values are; when
    all are 0 or all are 1 there is no spread to go by, and Wilson's over the prompts stands in.
    """
    listed = [some for some in values if some]
    flat = [value for some in listed for value in some]
    if not flat:
        return None
    single = len(flat) == len(listed)
    if set(flat) <= {0.0, 1.0} and (single or len(set(flat)) == 1):
        return wilson(flat[0] * len(listed) if not single else sum(flat), len(listed))
    found = clustered(listed)
    if min(flat) < 0 or max(flat) > 1:
        return found
    return Interval(found.mean, max(found.low, 0.0), min(found.high, 1.0))


def correct(score: Score) -> bool | None:
    """Whether a score counts as right; None when it could not be judged."""
    return None if score.value is None else score.value >= RIGHT


def record(prompt: Prompt, rollout: Rollout, scores: dict[str, Score]) -> dict[str, Any]:
    """One rollout as plain data, with all that scoring it again takes; `llmrl.completions` reads it back."""
    return {
        "prompt_id": prompt.id,
        "prompt": prompt.question(),
        "messages": prompt.messages,
        "reference": prompt.reference,
        "columns": prompt.columns,
        "feedback": prompt.feedback,
        "text": rollout.text,
        "ids": list(rollout.ids),
        "truncated": rollout.truncated,
        "scores": {name: asdict(one) for name, one in scores.items()},
    }


def seed_of(seed: int, prompt_id: str) -> int:
    """A prompt's own seed, below 2^31."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{prompt_id}".encode()).digest()[:4]) >> 1
