"""Calling a scorer in the shape it was written for, and reading its answer. Runs in the pool's processes."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from llmrl.errors import RecipeError
from llmrl.redaction import exact, redact
from llmrl.types import Group, Prompt, Score

SHAPES = ("rollout", "group", "groups", "columns", "verl")
WHOLE_STEP = ("groups", "columns")  # called once, with every rollout of the step
LONGEST_REASON = 300  # characters of an error kept in the record
LARGEST_SCORE = 64 * 1024  # characters of one score, evidence and feedback included, as JSON


def shape_of(function: Callable[..., Any], name: str) -> str:
    """How the function wants to be called, read from its parameters.

    'rollout': (prompt, rollout) -> Score. 'group': (group) -> list[Score]. 'groups': (groups) -> list[list[Score]].
    'columns', TRL's: (prompts=, completions=, <columns>=) -> list[float | None] for the whole batch. 'verl':
    (data_source, solution_str, ground_truth, extra_info) -> float or {'score': float, ...}. Raises RecipeError.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise RecipeError(f"scorers.{name} is {function!r:.80}; expected a function.") from error
    names = [p.name for p in parameters]
    if names[:2] == ["prompt", "rollout"]:
        return "rollout"
    if names[:1] in (["group"], ["groups"]):
        return names[0]
    if {"solution_str", "ground_truth"} <= set(names):
        return "verl"
    if {"prompts", "completions"} & set(names) or any(p.kind is p.VAR_KEYWORD for p in parameters):
        return "columns"
    raise RecipeError(
        f"scorers.{name} takes ({', '.join(names)}). Expected (prompt, rollout), (group), (groups), TRL's (prompts, "
        "completions, <columns>) or verl's (data_source, solution_str, ground_truth, extra_info); options are "
        "keyword-only."
    )


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine, for functions and for objects with an asynchronous `__call__`."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def bound(function: Callable[..., Any], shape: str, groups: Sequence[Group]) -> Callable[[], Any]:
    """The call that judges every rollout of the groups; shapes of one rollout or one group get just that."""
    if shape == "rollout":
        return functools.partial(function, groups[0].prompt, groups[0].rollouts[0])
    if shape == "group":
        return functools.partial(function, groups[0])
    if shape == "groups":
        return functools.partial(function, list(groups))
    if shape == "verl":
        return functools.partial(function, **verl_arguments(function, groups[0]))
    return functools.partial(function, **columns(function, groups))


def verl_arguments(function: Callable[..., Any], group: Group) -> dict[str, Any]:
    """What verl would pass for one rollout, cut to what the function's signature takes."""
    prompt, given = group.prompt, group.prompt.columns
    found = {
        "data_source": given.get("data_source"),
        "solution_str": group.rollouts[0].text,
        "ground_truth": prompt.reference,
        "extra_info": given.get("extra_info"),
    }
    parameters = inspect.signature(function).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {name: value for name, value in found.items() if takes_all or name in parameters}


def columns(function: Callable[..., Any], groups: Sequence[Group]) -> dict[str, list[Any]]:
    """What TRL would pass: a list a column with one entry a completion, cut to what the function's signature takes.

    Prompts and completions are strings for text prompts and message lists for conversations. A recipe's option wins
    over a column of its name.
    """
    rows = [(group.prompt, rollout) for group in groups for rollout in group.rollouts]
    names = dict.fromkeys(name for prompt, _ in rows for name in prompt.columns)
    found = {"reference": [prompt.reference for prompt, _ in rows]}
    found |= {name: [prompt.columns.get(name) for prompt, _ in rows] for name in names}
    found["prompts"] = [asked(prompt) for prompt, _ in rows]
    found["completions"] = [
        rollout.text if prompt.messages is None else [{"role": "assistant", "content": rollout.text}]
        for prompt, rollout in rows
    ]
    found["completion_ids"] = [list(rollout.ids) for _, rollout in rows]
    parameters = inspect.signature(function).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    options = function.keywords if isinstance(function, functools.partial) else {}
    return {name: column for name, column in found.items() if (takes_all or name in parameters) and name not in options}


def asked(prompt: Prompt) -> str | list[dict[str, str]]:
    """The prompt as TRL passes it."""
    return prompt.text if prompt.messages is None else [dict(message) for message in prompt.messages]


def read(shape: str, groups: Sequence[Group], answer: Any) -> list[Score]:
    """The answer as one checked Score a rollout, in order. Raises ValueError when it is not one answer for each."""
    if shape == "rollout":
        return [checked(answer)]
    if shape == "verl":
        return [checked(from_verl(answer))]
    if shape == "groups":
        listed = list(answer)
        if len(listed) != len(groups):
            raise ValueError(f"returned {len(listed)} lists for {len(groups)} groups")
        pieces = zip(groups, listed, strict=True)
        return [one for group, scores in pieces for one in read("group", [group], scores)]
    answers = list(answer)
    expected = sum(len(group.rollouts) for group in groups)
    if len(answers) != expected:
        raise ValueError(f"returned {len(answers)} scores for {expected} rollouts")
    if shape == "columns":
        answers = [one if isinstance(one, Score) else Score(one) for one in answers]
    return [checked(one) for one in answers]


def from_verl(answer: Any) -> Score:
    """verl's number, or its dictionary with a 'score', as a Score; what else the dictionary holds is evidence."""
    if not isinstance(answer, dict):
        return Score(answer)
    if "score" not in answer:
        raise ValueError(f"returned a dictionary with {', '.join(map(str, answer)) or 'no keys'}; expected a 'score'")
    return Score(answer["score"], evidence={str(k): v for k, v in answer.items() if k != "score"})


def checked(answer: Any) -> Score:
    """The Score with a finite float or None for value, or one that says what was wrong with it."""
    if not isinstance(answer, Score):
        return Score(None, error=f"returned {type(answer).__name__}, expected a Score")
    if answer.feedback or answer.evidence:
        answer = replace(answer, feedback=exact(answer.feedback), evidence=exact(answer.evidence))
    if answer.error is not None:
        return replace(answer, value=None, error=readable(str(answer.error)))
    if not (answer.feedback is None or isinstance(answer.feedback, str)) or not isinstance(answer.evidence, dict):
        found = f"feedback {answer.feedback!r:.40} and evidence {answer.evidence!r:.40}"
        return Score(None, error=readable(f"{found}, expected text or None and a dictionary"))
    bad = next((v for _, v in answer.steps if finite(v) is None), None)
    if bad is not None:
        return replace(answer, value=None, steps=(), error=f"a step's value is {bad!r:.80}, expected a finite number")
    steps = tuple((int(end), float(value)) for end, value in answer.steps)
    if answer.value is None:
        return replace(answer, steps=steps)
    value = finite(answer.value)
    if value is None:
        wrong = f"value is {answer.value!r:.80}, expected a finite number or None"
        return replace(answer, value=None, steps=(), error=wrong)
    return replace(answer, value=value, steps=steps)


def finite(value: Any) -> float | None:
    """The value as a float; None when it is no finite number."""
    if isinstance(value, str | bytes | bytearray):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def plain(score: Score) -> dict[str, Any]:
    """The score as a dictionary for JSON."""
    return asdict(score)


def reason(error: BaseException) -> str:
    """An exception in one line."""
    name = type(error).__name__
    try:
        said = str(error)
    except BaseException:  # noqa: BLE001 - an exception may be unable to say what it is
        said = ""
    return readable(f"{name}: {said}" if said else name)


def readable(text: str) -> str:
    """A reason short enough to keep, and such that any file can hold it."""
    return redact(text[:LARGEST_SCORE])[:LONGEST_REASON].encode("utf-8", "backslashreplace").decode()


def singles(group: Group, shape: str) -> list[tuple[int, ...]]:
    """The smallest pieces of a group that a shape can be asked for: which of its rollouts."""
    everyone = range(len(group.rollouts))
    if shape in ("rollout", "verl", "columns"):
        return [(r,) for r in everyone]
    return [tuple(everyone)] if everyone else []
