"""Audits of scorers on the user's own rows: what a right response looks like is found by trying."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.metadata import entry_points
from statistics import fmean
from typing import Any

from pydantic import ValidationError

from llmrl import catalog
from llmrl.attacks import Case
from llmrl.audit import Example, Item, Judge, answers
from llmrl.config import Data
from llmrl.data.formats import to_prompt
from llmrl.data.read import read_rows
from llmrl.errors import DataError, RecipeError, ScoringError
from llmrl.problems import explain
from llmrl.types import Completion, Prompt

FORMS = ("%s", "\\boxed{%s}", "<answer>%s</answer>", "#### %s", "The answer is %s.", "```python\n%s\n```")
TRIED = 20  # prompts that each form is tried on


def stored_examples() -> dict[str, str]:
    """{scorer: 'module:function'} of the examples that come with scorers: EXAMPLES beside each plug-in's CATALOG."""
    found: dict[str, str] = {}
    for entry in entry_points(group=catalog.PLUG_INS["scorers"]):
        found |= getattr(import_module(entry.value.split(":")[0]), "EXAMPLES", {})
    return found


def stored_example(name: str) -> Example:
    """The example that comes with a scorer. Raises ScoringError where there is none, or it says why it can have none,
    CatalogError for an unknown scorer."""
    path = stored_examples().get(name)
    if path is None:
        catalog.get("scorers", name)  # a name that does not exist has its own message
        raise ScoringError(f"no examples come with scorer {name}. Give rows with references: --data FILE_OR_SOURCE.")
    if ":" not in path:
        raise ScoringError(f"scorer {name} has no audit of its own: {path}")
    return catalog.get("scorers", path)()


def data_of(values: dict[str, Any]) -> Data:
    """The data section that overrides describe. RecipeError with every problem."""
    try:
        return Data.model_validate(values)
    except ValidationError as error:
        found = explain(error, values)
        raise RecipeError(
            [f"data.{'.'.join(one.keys)}: {one.text or 'not a key of data.'}" for one in found]
        ) from error


def example_of(
    scorer: str,
    data: Data,
    judge: Judge,
    *,
    oracle: Callable[[Prompt], str] | None = None,
    full: float = 1.0,
    none: float = 0.0,
) -> Example:
    """The example that rows give. The answer is what `oracle` writes, else a stored good answer, else the reference.

    A reference is written in the form, of several usual ones, that gets full marks most often. Raises DataError for rows
    without any of these, ScoringError where no form ever gets full marks.
    """
    prompts = [to_prompt(row, data, number) for number, row in enumerate(read_rows(data, seed=0), 1)]
    right = [answer_to(prompt, oracle) for prompt in prompts]
    cases = [
        Case(prompt, answer, wrong_for(place, right), stored=good_answer(prompt))
        for place, (prompt, answer) in enumerate(zip(prompts, right, strict=True))
    ]
    forms = FORMS if oracle is None and all(case.stored is None for case in cases) else FORMS[:1]
    some = cases[:TRIED]
    shares = {}
    for form in forms:
        tried = [replace(case, form=form) for case in some]
        items = [Item("", place, case.response(case.answer)) for place, case in enumerate(tried)]
        scores = answers(scorer, tried, items, judge)
        shares[form] = fmean(score.value is not None and score.value >= full - 1e-6 for score in scores)
        reasons = [score.error for score in scores if score.error]
    best = max(forms, key=lambda form: shares[form])
    if not shares[best]:
        why = f" It says: {reasons[0]}." if reasons else ""
        raise ScoringError(
            f"scorer {scorer} gives {full:g} to none of {len(some)} right answers, in none of {len(forms)} forms.{why} "
            "Say how a right response is written by --oracle module:function, and what full marks are by --full."
        )
    return Example([replace(case, form=best) for case in cases], full=full, none=none)


def good_answer(prompt: Prompt) -> Completion | None:
    """The first stored answer that the data does not call rejected."""
    return next((one for one in prompt.completions if one.label != "rejected"), None)


def answer_to(prompt: Prompt, oracle: Callable[[Prompt], str] | None) -> str:
    """A right answer to the prompt; of a worked solution what follows its last '####'."""
    if oracle is not None:
        return oracle(prompt)
    if stored := good_answer(prompt):
        return stored.text
    if isinstance(prompt.reference, bool) or not isinstance(prompt.reference, str | int | float):
        raise DataError(
            f"prompt {prompt.id}: reference is {prompt.reference!r:.60}; expected text or a number to answer with. Name "
            "--oracle module:function, which gets the Prompt and returns a right response."
        )
    return str(prompt.reference).rpartition("####")[2].strip()


def wrong_for(place: int, right: Sequence[str]) -> str:
    """A wrong answer like the right one at `place`: the next whole number, else the next prompt's answer."""
    answer = right[place]
    if answer.removeprefix("-").isdecimal() and answer.isascii() and len(answer) < 100:
        return str(int(answer) + 1)
    others = (right[(place + step) % len(right)] for step in range(1, len(right)))
    return next((other for other in others if other != answer), answer + "?")
