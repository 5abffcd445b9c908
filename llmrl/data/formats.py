"""From a row, in any of the field's usual formats, to a Prompt with its stored completions."""

from __future__ import annotations

import math
from typing import Any

from llmrl.config import Data
from llmrl.data.columns import FIELDS, fill, identity, mapped, reference_column
from llmrl.data.read import Row
from llmrl.data.steps import joined
from llmrl.data.turns import HH_START, Turns, dialogue, shared, split_last, to_turns
from llmrl.errors import DataError
from llmrl.types import Completion, Prompt

# A form is known by its columns. Where several fit, one whose columns contain another's wins; else it is ambiguous.
FORMS = {
    "prompt": {"prompt"},
    "completion": {"prompt", "completion"},
    "feedback": {"prompt", "completion", "feedback"},
    "messages": {"messages"},
    "text": {"text"},
    "pairs": {"prompt", "chosen", "rejected"},
    "implicit": {"chosen", "rejected"},
    "steps": {"prompt", "steps", "labels"},
    "stepwise": {"prompt", "completions", "labels"},
}
FORMATS = {
    "auto": list(FORMS),
    "prompt": ["prompt"],
    "demonstration": ["completion", "messages", "text"],
    "pairs": ["pairs", "implicit"],
    "feedback": ["feedback"],
    "hh": ["implicit"],
    "steps": ["steps", "stepwise"],
}
OPTIONAL = {
    "feedback": "score",
    "pairs": "margin",
    "implicit": "margin",
}  # columns that a form may have besides its own
Context = str | Turns


def to_prompt(row: Row, data: Data, number: int) -> Prompt:
    """The prompt of a row, with its completions, reference and other columns; `number`, from 1, is for errors.

    Formats: prompt; prompt + completion; messages, whose last assistant turn is the completion; text (language
    modelling: nothing before it); prompt + chosen + rejected, or chosen + rejected that begin alike (what they share is
    the prompt, as in TRL), both with an optional margin; the dialogue strings of Anthropic's HH; prompt + completion +
    feedback (+ score); prompt + steps (TRL: completions) + labels. A prompt that is a string stays raw text; messages go
    through the chat template. Other columns need `data.columns` or `data.user`. Raises DataError when no format fits,
    when several do, or when the row breaks the one that does.
    """
    try:
        return _convert(row, data)
    except DataError as error:
        raise DataError(f"row {number}: {error}") from error


def _convert(row: Row, data: Data) -> Prompt:
    view = mapped(row, data.columns)
    if data.user is not None:
        view["prompt"] = [{"role": "user", "content": fill(data.user, row)}]
    form = recognise(view, data)
    context, completions = _read(form, view, data)
    if data.system is not None:
        context = under_system(context, fill(data.system, row))
    optional = OPTIONAL.get(form)
    used = {data.columns.get(name, name) for name in FORMS[form] | ({optional} if optional else set())}
    reference = reference_column(row, data.columns, used)
    return Prompt(
        id=identity(row),
        messages=None if isinstance(context, str) else context,
        text=context if isinstance(context, str) else None,
        reference=None if reference is None else row[reference],
        columns={key: value for key, value in row.items() if key not in used}
        | _margin(view if optional == "margin" else {}),
        completions=completions,
    )


def recognise(view: Row, data: Data) -> str:
    """The form of a row, a key of FORMS. DataError when none fits or several do."""
    present = {key for key, value in view.items() if value is not None}
    fits = [form for form in FORMATS[data.format] if FORMS[form] <= present]
    # A column called text, beside others, is often no document: then only the recipe can say that it is.
    said = (data.format == "demonstration" or "text" in data.columns) and "prompt" not in present
    if present != {"text"} and not said:
        fits = [form for form in fits if form != "text"]
    fits = [form for form in fits if not any(FORMS[form] < FORMS[other] for other in fits)]
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise DataError(
            f"ambiguous: the columns {', '.join(view)} fit the formats {' and '.join(fits)}. "
            f"Set data.format to one of {', '.join(FORMATS)}."
        )
    known = "; ".join(" + ".join(name for name in FIELDS if name in FORMS[form]) for form in FORMATS[data.format])
    raise DataError(
        f"no format fits the columns {', '.join(view)} (data.format: {data.format}). Known: {known}. Map columns by "
        "data.columns, e.g. {prompt: question}; make a user turn by data.user, e.g. '{question}'; or set data.format "
        "(a text column beside others is a document only under data.format: demonstration)."
    )


def under_system(context: Context, system: str) -> Turns:
    """The context with a system turn before it."""
    if isinstance(context, str):
        raise DataError("data.system needs a chat, but the prompt is raw text. Set data.user: '{prompt}' as well.")
    if context[0]["role"] == "system":
        raise DataError("data.system is set, but the row has a system turn of its own. Remove data.system.")
    return ({"role": "system", "content": system}, *context)


def _margin(view: Row) -> dict[str, float]:
    margin = view.get("margin")
    if margin is None:
        return {}
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not math.isfinite(margin):
        raise DataError(f"margin is {margin!r:.40}; expected a number: by how much the chosen answer is better.")
    return {"margin": float(margin)}


def _read(form: str, view: Row, data: Data) -> tuple[Context, tuple[Completion, ...]]:
    if form == "text":
        return "", (_answer(view["text"], "", "text"),)
    if form == "messages":
        context, answer = split_last(to_turns(view["messages"], "messages"), "messages")
        return context, (answer,)
    if form in ("pairs", "implicit"):
        context, sides = _read_pair(view, data.format)
        if sides[0].text == sides[1].text:
            raise DataError("chosen and rejected are the same: such a pair teaches nothing, and its loss never falls.")
        return context, sides
    context = _context(view["prompt"])
    if form == "prompt":
        return context, ()
    if form in ("steps", "stepwise"):
        text, ends = joined(view["steps" if form == "steps" else "completions"], view["labels"], data.step_tag)
        return context, (_answer(text, context, "steps", steps=ends),)
    extra: dict[str, Any] = {}
    if form == "feedback":
        extra = {"feedback": view["feedback"], "score": view.get("score")}
        if not isinstance(extra["feedback"], str) or not isinstance(extra["score"], int | float | None):
            raise DataError(f"feedback and score are {extra}; expected text and a number.")
    return context, (_answer(view["completion"], context, "completion", **extra),)


def _read_pair(view: Row, asked: str) -> tuple[Context, tuple[Completion, ...]]:
    chosen, rejected, prompt = view["chosen"], view["rejected"], view.get("prompt")
    is_hh = all(isinstance(side, str) and side.startswith(HH_START) for side in (chosen, rejected))
    if asked == "hh" and not is_hh:
        raise DataError(f"format hh: chosen and rejected have to begin with {HH_START!r}; chosen is {chosen!r:.60}.")
    if is_hh and asked in ("hh", "auto"):
        context, first = split_last(dialogue(chosen), "chosen", label="chosen")
        other, second = split_last(dialogue(rejected), "rejected", label="rejected")
        if context != other:
            raise DataError("the turns before the last answer differ between chosen and rejected: no common prompt.")
        return context, (first, second)
    # Published pairs often repeat, as text, the prompt that their messages begin with.
    if prompt is None or (isinstance(prompt, str) and not isinstance(chosen, str)):
        if isinstance(chosen, str) is not isinstance(rejected, str):
            raise DataError(
                f"chosen is {chosen!r:.40}, rejected {rejected!r:.40}; expected text for both, or messages for both."
            )
        if not isinstance(chosen, str):
            chosen, rejected = to_turns(chosen, "chosen"), to_turns(rejected, "rejected")
        size = shared(chosen, rejected)
        if size == 0 and not isinstance(chosen, str):
            raise DataError("chosen and rejected share no first turn. Give the prompt in a column of its own.")
        prompt, chosen, rejected = chosen[:size], chosen[size:], rejected[size:]
    context = _context(prompt)
    return context, tuple(
        _answer(side, context, label, label=label) for side, label in ((chosen, "chosen"), (rejected, "rejected"))
    )


def _context(value: Any) -> Context:
    if isinstance(value, str):
        return value
    turns = to_turns(value, "prompt")
    if turns[-1]["role"] == "assistant":
        raise DataError("the prompt ends with an assistant turn; to learn it, use data.columns: {messages: prompt}.")
    return turns


def _answer(value: Any, context: Context, name: str, **extra: Any) -> Completion:
    if isinstance(context, str):
        if not isinstance(value, str):
            raise DataError(f"{name} is {value!r:.60}; expected text, as the prompt is raw text.")
        return Completion(value, **extra)
    turns = to_turns([{"role": "assistant", "content": value}] if isinstance(value, str) else value, name)
    if [turn["role"] for turn in turns] != ["assistant"]:
        found = ", ".join(turn["role"] for turn in turns)
        raise DataError(f"{name} has the turns {found}; expected one assistant turn after the prompt.")
    return Completion(turns[0]["content"], turns, **extra)
