"""Does the response follow every instruction that a program can check?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmrl.limits import limits
from llmrl.types import Prompt, Rollout, Score
from reward_models.format_tags import after_thoughts
from reward_models.instructions.checks import follows

LONGEST = 1_000_000  # characters; a longer response follows nothing


@limits(seconds=30, confined=True)
def instruction_following(prompt: Prompt, rollout: Rollout, *, strict: bool = True, share: bool = False) -> Score:
    """1.0 if the response follows all of the prompt's instructions, else 0.0: IFEval (arXiv:2311.07911), offline.

    Reads google/IFEval's columns as published: `instruction_id_list` and `kwargs`, one object for each instruction, in
    which null means 'not given'. Judged is what follows </think>. share: the share of instructions followed instead.
    strict: the response as it is; else an instruction counts as followed when any of eight versions follows it: without
    its first line, its last line, both, and each of these without asterisks. Of the original the sentence splitter, the
    language guesser and the capital words are our own. Raises ValueError for rows that are not of this form.
    """
    instructions = instructions_of(prompt)
    text = after_thoughts(rollout.text)
    versions = [] if len(text) > LONGEST else [text] if strict else relaxed(text)
    followed = [any(follows(name, given, one) for one in versions) for name, given in instructions]
    missed = [name for (name, _), done in zip(instructions, followed, strict=True) if not done]
    value = sum(followed) / len(followed) if share else float(all(followed))
    feedback = f"Followed {sum(followed)} of {len(followed)} instructions."
    if missed:
        feedback += f" Not followed: {', '.join(dict.fromkeys(missed))}."
    return Score(value, feedback=feedback, evidence={"followed": followed, "missed": missed, "strict": strict})


def instructions_of(prompt: Prompt) -> list[tuple[str, dict[str, Any]]]:
    """(instruction, its arguments without nulls) for each of the row. Raises ValueError."""
    names, given = prompt.columns.get("instruction_id_list"), prompt.columns.get("kwargs")
    fits = isinstance(names, list) and isinstance(given, list) and len(names) == len(given) > 0
    if not fits or not all(isinstance(one, dict | None) for one in given):
        raise ValueError(
            f"instruction_id_list is {names!r:.80} and kwargs {given!r:.80}; expected two lists of one length, of names "
            "and of objects, as in google/IFEval"
        )
    return [(n, {k: v for k, v in (one or {}).items() if v is not None}) for n, one in zip(names, given, strict=True)]


def relaxed(text: str) -> Sequence[str]:
    """The eight versions of a response that the loose measure tries."""
    first, rest = text.find("\n"), text.rfind("\n")
    without_first = text[first + 1 :].strip() if first >= 0 else ""
    without_last = text[: max(rest, 0)].strip()
    without_both = text[first + 1 : rest].strip() if 0 <= first < rest else ""
    versions = [text, without_first, without_last, without_both]
    return [*versions, *(one.replace("*", "") for one in versions)]
