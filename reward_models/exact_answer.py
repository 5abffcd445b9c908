"""Is the answer the same string as the reference, up to a normalisation that is named?"""

from __future__ import annotations

import math
import re
import string
import unicodedata
from typing import Any, Literal

from llmrl.limits import limits
from llmrl.types import Prompt, Rollout, Score
from reward_models.extraction import final_answer
from reward_models.format_tags import after_thoughts

LONGEST = 10_000  # characters of an answer; longer ones equal nothing
SHOWN = 200  # characters of an answer kept in the record

ARTICLE = re.compile(r"\b(?:a|an|the)\b")
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


@limits(seconds=10, confined=True)
def exact_answer(
    prompt: Prompt,
    rollout: Rollout,
    *,
    read: Literal["marked", "last_line", "whole"] = "marked",
    ignore_case: bool = True,
    ignore_punctuation: bool = True,
    ignore_articles: bool = True,
) -> Score:
    """1.0 if the answer equals prompt.reference, or one of a list of references, as a string, else 0.0.

    read: 'marked', what stands under the last \\boxed{}, ####, <answer> or 'answer is'; 'last_line', the last line with
    text on it; 'whole', all that follows </think>. Space at the ends and doubled space never count; by default neither
    do case, ASCII punctuation and the articles a, an, the: SQuAD's exact match (arXiv:1606.05250). A reference of
    nothing else, such as 'The' or '!', is compared with case alone. An answer that merely contains the reference is
    wrong. Raises ValueError when the reference is not a string, a number or a list of these, or is empty.
    """
    ignored = {"case": ignore_case, "punctuation": ignore_punctuation, "articles": ignore_articles}
    expected = references(prompt.reference)
    found = answer_text(rollout.text, read)
    evidence: dict[str, Any] = {"read": found and found[:SHOWN], "expected": [one[:SHOWN] for one in expected[:5]]}
    evidence |= {"how": read, "ignored": [name for name, on in ignored.items() if on]}
    if not found:
        return Score(0.0, feedback="There is no answer in the response.", evidence=evidence | {"correct": False})
    correct = len(found) <= LONGEST and any(same(found, one, ignored) for one in expected)
    feedback = f"The answer {found[:SHOWN]} is {'correct' if correct else 'wrong'}."
    return Score(float(correct), feedback=feedback, evidence=evidence | {"correct": correct})


def answer_text(text: str, read: str) -> str | None:
    """The part of the response that is compared; None or '' where there is none."""
    if read == "marked":
        found = final_answer(text)
        return found and found.text
    answer = after_thoughts(text).strip()
    return answer if read == "whole" else answer.rpartition("\n")[2].strip()


def same(answer: str, reference: str, ignored: dict[str, bool]) -> bool:
    """Whether two strings are equal after normalisation, and something is left of them."""
    expected = normalised(reference, **ignored)
    if not expected:
        return normalised(answer, case=ignored["case"]) == normalised(reference, case=ignored["case"])
    return normalised(answer, **ignored) == expected


def normalised(text: str, *, case: bool = False, punctuation: bool = False, articles: bool = False) -> str:
    """The text in NFC with single spaces, and without what is to be ignored."""
    text = unicodedata.normalize("NFC", text)
    if case:
        text = text.casefold()
    if punctuation:
        text = text.translate(WITHOUT_PUNCTUATION)
    if articles:
        text = ARTICLE.sub(" ", text)
    return " ".join(text.split())


def references(reference: Any) -> list[str]:
    """A reference as a list of strings that are not empty. Raises ValueError."""
    several = list(reference) if isinstance(reference, list | tuple) else [reference]
    if not several or any(isinstance(one, bool) or not isinstance(one, str | int | float) for one in several):
        raise ValueError(
            f"reference is {reference!r:.80}; expected a string, a number or a list of them. "
            "Map it: data.columns.reference"
        )
    texts = [str(one).strip() for one in several]
    if not all(texts) or any(isinstance(one, float) and not math.isfinite(one) for one in several):
        raise ValueError(f"reference is {reference!r:.80}; expected no empty string, and finite numbers")
    return texts
