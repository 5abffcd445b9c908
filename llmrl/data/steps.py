"""Steps of an answer: joined into one text, and found again among its tokens."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from llmrl.data.render import render_completion
from llmrl.errors import DataError
from llmrl.types import Completion, Prompt

Steps = tuple[tuple[int, float], ...]  # (characters up to the end of the step, its number)


def joined(steps: Any, labels: Any, tag: str) -> tuple[str, Steps]:
    """(the steps as one text with `tag` after each, where each ends in it and its label).

    Raises DataError unless there are as many labels as steps, all between 0 and 1; booleans are 0 and 1.
    """
    if not isinstance(steps, list | tuple) or not steps or not all(isinstance(step, str) and step for step in steps):
        raise DataError(f"steps are {steps!r:.80}; expected a list of texts, none of them empty.")
    if not isinstance(labels, list | tuple) or len(labels) != len(steps):
        raise DataError(f"labels are {labels!r:.80}; expected a list with one label for each of {len(steps)} steps.")
    text, ends = "", []
    for step, label in zip(steps, labels, strict=True):
        if not isinstance(label, int | float) or not 0 <= label <= 1:
            raise DataError(f"a step's label is {label!r:.40}; expected a number from 0 to 1, or true or false.")
        text += step + tag
        ends.append((len(text), float(label)))
    return text, tuple(ends)


def laid_on_written(prompt: Prompt, answer: Completion, ids: Sequence[int], tokenizer: Any) -> Steps:
    """(position among `ids`, label) of each step of a stored answer: the token that holds the step's last character.

    ids: the answer rendered after the prompt. The answer up to the end of the step is rendered, too, and the two are
    compared, so that it does not matter what the tokenizer makes of unusual characters. Raises DataError where the chat
    template takes off the space that an answer ends with, and with it the last tag.
    """
    if not answer.steps:
        return ()

    def rendered(text: str) -> Sequence[int]:
        turns = answer.messages and ({**answer.messages[0], "content": text},)
        return render_completion(prompt, replace(answer, text=text, messages=turns), tokenizer)

    if answer.text != answer.text.rstrip() and rendered(answer.text.rstrip()) == tuple(ids):
        raise DataError(
            "the chat template takes the last tag off the answer. Use a data.step_tag that is not white space."
        )
    found = []
    for end, label in answer.steps:
        part = rendered(answer.text[:end])[:-1]  # without the end of the turn
        same = next((i for i, (a, b) in enumerate(zip(part, ids, strict=False)) if a != b), len(part))
        found.append((min(same, len(part) - 1), label))
    return tuple(found)


def laid_on_sampled(ids: Sequence[int], text: str, steps: Steps, tokenizer: Any) -> Steps:
    """(position among `ids`, number) of each step of a rollout: the token that holds the step's last character.

    text: what the ids decode to. A token of a character of several bytes holds it if it is the last of them; a step that
    is said to end beyond the text ends with it.
    """

    def holds(count: int, wanted: str) -> bool:
        return tokenizer.decode(list(ids[:count]), skip_special_tokens=True).startswith(wanted)

    ends = [(text[: max(characters, 0)], number) for characters, number in steps]
    return tuple((bisect_left(range(1, len(ids)), True, key=lambda n, w=w: holds(n, w)), number) for w, number in ends)
