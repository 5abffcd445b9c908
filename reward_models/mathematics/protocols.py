"""The named protocols: how a response is read and when what was read equals the reference. A score is of a protocol."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator

from llmrl.errors import nearest
from reward_models import equivalence
from reward_models.extraction import TAIL, Found, boxed, final_answer
from reward_models.mathematics import harnesses, kernel

DEFAULT = "llmrl/boxed@1"
PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")  # a word that is no command
MOST_WORDS = 8
Verdict = tuple[bool, str]  # whether it is right, and how that was found


class Protocol(NamedTuple):
    """read: a response's answer, None for none. expect: the answer in a reference. equal: (found, expected) -> Verdict.

    source: whose numbers these are.
    """

    read: Callable[[str], Found | None]
    expect: Callable[[str], str]
    equal: Callable[[Found, str], Verdict]
    source: str


def protocol_of(name: str) -> Protocol:
    """The protocol of that name. Raises ValueError with the nearest one for an unknown name."""
    if name not in PROTOCOLS:
        raise ValueError(f"no protocol named {name!r}.{nearest(name, PROTOCOLS)} Known: {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]


def known(name: str) -> str:
    """The name of a protocol. Raises ValueError with the nearest one for an unknown name."""
    protocol_of(name)
    return name


ProtocolName = Annotated[str, AfterValidator(known)]  # an option of this type is checked before anything loads


def written(reference: Any) -> str:
    """The reference as text. Raises ValueError unless it is a finite number or a string that is not blank."""
    is_text = isinstance(reference, str) and reference.strip()
    is_number = isinstance(reference, int | float) and not isinstance(reference, bool)
    if not is_text and not (is_number and abs(reference) < math.inf):
        raise ValueError(f"reference is {reference!r}; expected a string or a number. Map it: data.columns.reference")
    return str(reference)


def final_part(text: str) -> str:
    """What follows '####', else what the last box holds, else the text."""
    _, mark, rest = text.rpartition("####")
    return (rest if mark else boxed(text) or text).strip()


def box_or_all(text: str) -> str:
    """What the last box holds, else the text."""
    return harnesses.hendrycks_box(text) or text


def without_commas(text: str | None) -> str | None:
    """The text without commas."""
    return text and text.replace(",", "")


def verl_gold(text: str) -> str:
    """The number after '####' without its commas, as verl's data preparation leaves it."""
    return text.rpartition("####")[2].strip().replace(",", "")


def exactly(normal: Callable[[str], str]) -> Callable[[Found, str], Verdict]:
    """Equality of normalised strings."""

    def equal(found: Found, expected: str) -> Verdict:
        return normal(found.text) == normal(expected), "string"

    return equal


def mark(how: str, read: Callable[[str], str | None]) -> Callable[[str], Found | None]:
    """A reader with the name of its mark. An answer longer than 4,096 characters is none."""

    def reader(text: str) -> Found | None:
        found = read(text)
        return None if found is None or len(found) > equivalence.LONGEST else Found(found, how)

    return reader


def same_mathematics(found: Found, expected: str) -> Verdict:
    """Equal as strings, exact numbers or times; else by algebra. Units that contradict are never equal."""
    decided = equivalence.verdict(found.text, expected)
    if decided is not None:
        return decided, "exact"
    answer, reference = (without_unit(equivalence.normalised(one)) for one in (found.text, expected))
    if len(PROSE.findall(answer[: equivalence.LONGEST])) > MOST_WORDS:
        return False, "prose"  # algebra would read a product of letters
    return kernel.same(answer, reference)


def without_unit(text: str) -> str:
    """A normalised text as LaTeX without the unit that ends it; a percent sign is part of the number."""
    body, unit = equivalence.split_unit(text)
    return (text if unit == "%" else body).replace("%", "\\%").replace("°", "^\\circ ")


def same_by_math_verify(found: Found, expected: str) -> Verdict:
    """math-verify's verdict on LaTeX, with its own normalisation."""
    if found.text == expected:
        return True, "string"
    return kernel.same(found.text, expected, units=True, regions=False)


def same_integer(found: Found, expected: str) -> Verdict:
    """Equality of integers; an answer that is no integer is wrong. Raises BrokenReference for such a reference."""
    reference = equivalence.quantity(equivalence.normalised(expected))
    if reference is None or reference.value.denominator != 1:
        raise kernel.BrokenReference(f"the reference {expected[:80]!r} is no integer; use another protocol")
    answer = equivalence.quantity(equivalence.normalised(found.text))
    return answer is not None and answer.value == reference.value, "exact"


def same_minerva(found: Found, expected: str) -> Verdict:
    """Equality after Minerva's normalisation, as strings or by algebra."""
    answer, reference = harnesses.minerva(found.text), harnesses.minerva(expected)
    if answer == reference:
        return True, "string"
    return kernel.zero_difference(answer, reference)


def same_dapo(found: Found, expected: str) -> Verdict:
    """A stated answer counts after normalisation, a boxed one as it is."""
    if found.how == "boxed":
        return found.text == expected, "string"
    return harnesses.dapo(found.text) == harnesses.dapo(expected), "string"


def read_dapo(text: str) -> Found | None:
    """The stated answer, or for want of one the boxed."""
    for how, read in (("sentence", harnesses.dapo_answer), ("boxed", harnesses.dapo_box)):
        if (found := read(text)) is not None:
            return Found(found, how)
    return None


def read_math_verify(text: str) -> Found | None:
    """The answer that math-verify would take, from the last 20,000 characters."""
    from reward_models.mathematics.search import search

    return search(text[-TAIL:])


def same_hendrycks(found: Found, expected: str, *, verl: bool = False) -> Verdict:
    """Equality after the normalisation of MATH's own grader."""
    return harnesses.hendrycks_equal(found.text, expected, verl=verl), "string"


numbers = exactly(harnesses.lm_eval_gsm8k)
plain = exactly(lambda text: text)
boxes = mark("boxed", harnesses.hendrycks_box)
dollars = mark("dollars", harnesses.between_dollars)
sentence = mark("sentence", harnesses.minerva_sentence)
verl_number = mark("hashes", lambda text: without_commas(harnesses.verl_hashes(text)))
OURS, LM_EVAL, VERL = "llmrl", "lm-eval 0.4.13", "verl 0.9.1"

PROTOCOLS = {
    "llmrl/boxed@1": Protocol(final_answer, final_part, same_mathematics, OURS),
    "llmrl/boxed-only@1": Protocol(partial(final_answer, boxed_only=True), final_part, same_mathematics, OURS),
    "llmrl/last-number@1": Protocol(partial(final_answer, last_number=True), final_part, same_mathematics, OURS),
    "aime": Protocol(final_answer, final_part, same_integer, OURS),
    "gsm8k/strict": Protocol(
        mark("hashes", harnesses.first_hashes), str, numbers, f"{LM_EVAL}: gsm8k 3.0, strict-match"
    ),
    "gsm8k/flexible": Protocol(
        mark("number", harnesses.last_flexible), str, numbers, f"{LM_EVAL}: gsm8k 3.0, flexible-extract"
    ),
    "minerva": Protocol(sentence, box_or_all, same_minerva, f"{LM_EVAL}: minerva_math 3.1, exact_match"),
    "hendrycks": Protocol(
        boxes, box_or_all, same_hendrycks, f"{LM_EVAL}: hendrycks_math 1.0, is_equiv on the last box"
    ),
    "hendrycks/dollars": Protocol(dollars, box_or_all, same_hendrycks, f"{LM_EVAL}: hendrycks_math 1.0, exact_match"),
    "verl/gsm8k": Protocol(verl_number, verl_gold, plain, f"{VERL}: gsm8k, strict"),
    "verl/math": Protocol(boxes, box_or_all, partial(same_hendrycks, verl=True), f"{VERL}: math_reward"),
    "dapo": Protocol(read_dapo, box_or_all, same_dapo, f"{VERL}: math_dapo"),
    "math_verify": Protocol(read_math_verify, final_part, same_by_math_verify, "math-verify 0.9.0, its defaults"),
}
