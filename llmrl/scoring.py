"""Scorers: the three shapes they come in, and running them so that a failure never reads as a zero."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from llmrl import catalog
from llmrl.config import Named, Scoring
from llmrl.errors import RecipeError, ScoringError, nearest
from llmrl.options import typed
from llmrl.types import Group, Prompt, Rollout, Score

LONGEST_REASON = 300  # characters of an error kept in the record


@dataclass(frozen=True)
class Scorer:
    """A judge of rollouts, its options bound.

    shape: 'rollout', called as (prompt, rollout) -> Score; 'group', as (group) -> list[Score]; or 'columns', as TRL
    calls a reward function, (prompts=, completions=, <columns>=) -> list[float | None] for the whole batch.
    """

    name: str
    function: Callable[..., Any]
    shape: str
    weight: float = 1.0


@dataclass(frozen=True)
class Job:
    """One call of one scorer, and how many rollouts it answers for."""

    scorer: Scorer
    call: Callable[[], Any]
    rollouts: tuple[tuple[int, int], ...]  # (group, rollout) positions


@dataclass(frozen=True)
class Faults:
    """Rollouts, those that could not be judged, and each error as (scorer, prompt id, reason)."""

    rollouts: int
    failed: int
    errors: list[tuple[str, str, str]]


def make_scorer(named: Named) -> Scorer:
    """The scorer that a recipe names: 'math_answer' or {name: format_tags, weight: 0.2, <options>}.

    Raises CatalogError for an unknown name, RecipeError for wrong options or for a signature of no known shape.
    """
    options = dict(named) if isinstance(named, dict) else {"name": named}
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise RecipeError(f"scorers: {named!r} has no name. Expected a scorer's name or {{name: ..., <option>: ...}}.")
    weight = options.pop("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise RecipeError(f"scorers.{name}.weight is {weight!r}; expected a number.")
    function = catalog.get("scorers", name)
    shape, where = shape_of(function, name), f"scorers.{name}"
    declared = catalog.options_of(function)
    known = [*declared, "weight"]
    values, problems = {}, []
    for key, value in options.items():
        if key not in declared:
            hint = f"{nearest(key, known)} Options: {', '.join(known)}."
            problems.append(f"{where}.{key} is not an option of {name}.{hint}")
            continue
        values[key], wrong = typed(declared[key].annotation, value, f"{where}.{key}")
        problems += wrong
    if shape != "columns":  # there a keyword without a default asks for a column
        required = [key for key, p in declared.items() if p.default is p.empty and key not in options]
        problems += [f"{where}.{key} is missing: {name} has no default for it." for key in required]
    if problems:
        raise RecipeError(problems)
    return Scorer(name.rpartition(":")[2], partial(function, **values) if values else function, shape, float(weight))


def from_function(function: Callable[..., Any]) -> Scorer:
    """The scorer that a Python function is, under its own name."""
    return Scorer(function.__name__, function, shape_of(function, function.__name__))


def make_scorers(named: Iterable[Named]) -> list[Scorer]:
    """`make_scorer` for each. RecipeError when two share a name: scores are kept, logged and combined by name."""
    scorers = [make_scorer(one) for one in named]
    for name, times in Counter(scorer.name for scorer in scorers).items():
        if times > 1:
            raise RecipeError(f"scorers: {name} is named {times} times; expected once. Join them in one scorer.")
    return scorers


def shape_of(function: Callable[..., Any], name: str) -> str:
    """How the function wants to be called, read from its parameters."""
    parameters = list(inspect.signature(function).parameters.values())
    names = [p.name for p in parameters]
    if names[:2] == ["prompt", "rollout"]:
        return "rollout"
    if names[:1] == ["group"]:
        return "group"
    if {"prompts", "completions"} & set(names) or any(p.kind is p.VAR_KEYWORD for p in parameters):
        return "columns"
    raise RecipeError(
        f"scorers.{name} takes ({', '.join(names)}). Expected (prompt, rollout), (group) or TRL's "
        "(prompts, completions, <columns>); options are keyword-only."
    )


def score(
    groups: Sequence[Group],
    scorers: Sequence[Scorer],
    config: Scoring,
    gather: Callable[[Faults], Sequence[Faults]] = lambda found: [found],
) -> list[Group]:
    """The groups with `scores` filled in: for each rollout, every scorer's Score by name.

    What a scorer raises, a value that is not a finite number, a wrong count or an asynchronous answer later than
    `config.timeout` seconds a rollout becomes a Score with an error. 'retry' asks once more. Synchronous scorers run
    one after the other in this thread and cannot be interrupted; asynchronous ones run together in one event loop.
    Raises ScoringError for any error under 'fail', or for more rollouts with errors than `config.max_error_share`;
    `gather` brings in the faults of the other processes.
    """
    jobs = [job for scorer in scorers for job in jobs_of(scorer, groups)]
    retry = config.on_error == "retry"
    awaited = [job for job in jobs if is_async(job.scorer.function)]
    # the synchronous ones first: they would block the event loop while others' time-outs run
    judged = [(job, judge(job, retry)) for job in jobs if not is_async(job.scorer.function)]
    if awaited:
        judged += zip(awaited, run(judge_all(awaited, retry, config.timeout)), strict=True)
    found: dict[tuple[int, int], dict[str, Score]] = {}
    for job, scores in judged:
        for place, given in zip(job.rollouts, scores, strict=True):
            found.setdefault(place, {})[job.scorer.name] = given
    names = [scorer.name for scorer in scorers]
    scored = [
        replace(group, scores=tuple({n: found[g, r][n] for n in names} for r in range(len(group.rollouts))))
        for g, group in enumerate(groups)
    ]
    refuse(gather(faults(scored)), config)
    return scored


def usable(scores: dict[str, Score]) -> bool:
    """Whether a rollout can be trained on: no scorer failed and, where there are scorers, one of them gave a value."""
    if any(one.error is not None for one in scores.values()):
        return False
    return not scores or any(one.value is not None for one in scores.values())


def faults(groups: Sequence[Group]) -> Faults:
    """The errors among scored rollouts."""
    rows = [(group.prompt.id, scores) for group in groups for scores in group.scores]
    errors = [(name, prompt, one.error) for prompt, scores in rows for name, one in scores.items() if one.error]
    return Faults(len(rows), sum(any(one.error for one in scores.values()) for _, scores in rows), errors)


def refuse(found: Sequence[Faults], config: Scoring) -> None:
    """Raise ScoringError where the errors of all processes are more than the recipe tolerates."""
    errors = [error for one in found for error in one.errors]
    if errors and config.on_error == "fail":
        name, prompt, reason = errors[0]
        raise ScoringError(
            f"scorer {name} failed on prompt {prompt}: {reason}. Mend the scorer, or set scoring.on_error to drop."
        )
    rollouts, failed = sum(one.rollouts for one in found), sum(one.failed for one in found)
    if failed > config.max_error_share * rollouts:
        (name, reason), times = Counter((name, reason) for name, _, reason in errors).most_common(1)[0]
        raise ScoringError(
            f"{failed} of {rollouts} rollouts could not be scored; scoring.max_error_share allows "
            f"{config.max_error_share:g}. Most often ({times} times) scorer {name}: {reason}. Mend the scorer."
        )


def jobs_of(scorer: Scorer, groups: Sequence[Group]) -> list[Job]:
    """The calls that it takes to judge every rollout once."""
    places = [tuple((g, r) for r in range(len(group.rollouts))) for g, group in enumerate(groups)]
    if scorer.shape == "rollout":
        return [
            Job(scorer, partial(scorer.function, group.prompt, rollout), ((g, r),))
            for g, group in enumerate(groups)
            for r, rollout in enumerate(group.rollouts)
        ]
    if scorer.shape == "group":
        calls = [partial(scorer.function, group) for group in groups]
        return [Job(scorer, call, at) for call, at in zip(calls, places, strict=True) if at]
    rows = [(group.prompt, rollout) for group in groups for rollout in group.rollouts]
    everything = tuple(place for at in places for place in at)
    return [Job(scorer, partial(scorer.function, **columns(scorer.function, rows)), everything)] if rows else []


def columns(function: Callable[..., Any], rows: Sequence[tuple[Prompt, Rollout]]) -> dict[str, list[Any]]:
    """What TRL would pass: a list a column with one entry a completion, cut to what the function's signature takes.

    Prompts and completions are strings for text prompts and message lists for conversations. A recipe's option wins
    over a column of its name.
    """
    names = dict.fromkeys(name for prompt, _ in rows for name in prompt.columns)
    found = {"reference": [prompt.reference for prompt, _ in rows]}
    found |= {name: [prompt.columns.get(name) for prompt, _ in rows] for name in names}
    found["prompts"] = [p.text if p.messages is None else [dict(m) for m in p.messages] for p, _ in rows]
    found["completions"] = [
        rollout.text if prompt.messages is None else [{"role": "assistant", "content": rollout.text}]
        for prompt, rollout in rows
    ]
    found["completion_ids"] = [list(rollout.ids) for _, rollout in rows]
    parameters = inspect.signature(function).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    bound = function.keywords if isinstance(function, partial) else {}
    return {name: column for name, column in found.items() if (takes_all or name in parameters) and name not in bound}


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine, for functions and for objects with an asynchronous `__call__`."""
    inner = catalog.unwrap(function)
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(type(inner).__call__)


def run(coroutine: Coroutine[Any, Any, list[list[Score]]]) -> list[list[Score]]:
    """The coroutine's result, out of an event loop of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as thread:  # a notebook has a loop running in this thread already
        return thread.submit(asyncio.run, coroutine).result()


def judge(job: Job, retry: bool) -> list[Score]:
    """The job's scores, with those that failed asked for once more under `retry`."""
    scores = attempt(job)
    return better(scores, attempt(job)) if retry and has_errors(scores) else scores


async def judge_all(jobs: Sequence[Job], retry: bool, timeout: float) -> list[list[Score]]:
    """`judge` for asynchronous jobs, all at once."""

    async def one(job: Job) -> list[Score]:
        scores = await attempt_async(job, timeout)
        return better(scores, await attempt_async(job, timeout)) if retry and has_errors(scores) else scores

    return await asyncio.gather(*(one(job) for job in jobs))


def attempt(job: Job) -> list[Score]:
    """One synchronous call."""
    try:
        return read(job, job.call())
    except Exception as error:
        return failure(job, f"{type(error).__name__}: {error}")


async def attempt_async(job: Job, timeout: float) -> list[Score]:
    """One asynchronous call, given `timeout` seconds for each rollout that it answers for."""
    allowed = timeout * len(job.rollouts)
    try:
        return read(job, await asyncio.wait_for(job.call(), allowed))
    except TimeoutError as error:
        return failure(job, str(error) or f"no answer within {allowed:g} s")
    except Exception as error:
        return failure(job, f"{type(error).__name__}: {error}")


def read(job: Job, answer: Any) -> list[Score]:
    """The answer as one checked Score a rollout. Raises when it is not one answer for each."""
    if job.scorer.shape == "rollout":
        return [checked(answer)]
    answers = list(answer)
    if len(answers) != len(job.rollouts):
        raise ValueError(f"{job.scorer.name} returned {len(answers)} scores for {len(job.rollouts)} rollouts")
    return [checked(Score(one) if job.scorer.shape == "columns" else one) for one in answers]


def checked(answer: Any) -> Score:
    """The Score with a finite float or None for value, or one that says what was wrong with it."""
    if not isinstance(answer, Score):
        return Score(None, error=f"returned {type(answer).__name__}, expected a Score")
    if answer.error is not None or answer.value is None:
        return replace(answer, value=None)
    try:
        value = math.nan if isinstance(answer.value, str | bytes) else float(answer.value)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        return replace(answer, value=None, error=f"value is {answer.value!r:.80}, expected a finite number or None")
    return replace(answer, value=value)


def failure(job: Job, reason: str) -> list[Score]:
    """The same error for every rollout of the job."""
    return [Score(None, error=reason[:LONGEST_REASON])] * len(job.rollouts)


def has_errors(scores: Sequence[Score]) -> bool:
    """Whether any of them failed."""
    return any(one.error is not None for one in scores)


def better(first: Sequence[Score], second: Sequence[Score]) -> list[Score]:
    """What was judged the first time, and the second answer for the rest."""
    return [b if a.error is not None else a for a, b in zip(first, second, strict=True)]
