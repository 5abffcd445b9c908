"""Is the answer the right number, up to a tolerance?"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any, NamedTuple

from llmrl.limits import limits
from llmrl.types import Prompt, Rollout, Score
from reward_models.equivalence import contradict, unit_name
from reward_models.extraction import final_answer
from reward_models.format_tags import after_thoughts

TAIL = 500  # characters read for a number without a mark
SHOWN = 200  # characters kept in the record
LARGEST_EXPONENT = 400  # of ten: past the largest double
UNITS = frozenset("mgshLlKCFVWAJNk°")  # one letter after a number; any other is a variable
NOT_UNITS = frozenset("and or to through plus minus times over half".split())  # the number goes on
SCALES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}

DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3}){1,20}(?![0-9])|[0-9]{1,100})(?:\.[0-9]{0,100})?|\.[0-9]{1,100}"
POWER = r"[eE](?P<e>[+-]?[0-9]{1,4})|\s?(?:×|\*|\\times|\\cdot)\s?10\s?(?:\^|\*\*)\s?\{?(?P<ten>[+-]?[0-9]{1,4})\}?"
NUMBER = re.compile(
    rf"(?<![\w.,/^])(?P<sign>[+-]\s?)?(?:\\[dt]?frac\s?\{{(?P<over>{DIGITS})\}}\s?\{{(?P<under>{DIGITS})\}}"
    rf"|(?P<top>{DIGITS})(?:\s?/\s?(?P<bottom>{DIGITS})(?![\w/])|{POWER})?)"
    r"(?:\s?(?P<percent>\\?%|percent\b)|\s?(?P<unit>[A-Za-z°]{1,30})"
    r"(?:\s?\^\s?\{?(?P<power>[23])\}?|(?P<sign_power>[²³]))?)?(?![\w^])"
)
TERM_BEFORE = re.compile(r"[-+*/^|√!<>≤≥≠\\{]|\b(?:not|than)\b|\w\s?\(\Z")
TERM_AFTER = re.compile(r"\(|.*[+*^|√!<>≤≥≠\\π]|.*\s-\s", re.DOTALL)
NEAR_BEFORE = re.compile(r"[\^_√|{]\Z|-\(\Z")
NEAR_AFTER = re.compile(r"\(|\s?[!^\\√π|]")
SPELLING = [
    (re.compile("[\u2212\u2013]"), "-"),
    (re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s?\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\\[!,;: ]|\\?\$|(?<![0-9}])\*\*|\*\*(?!\s?[0-9({])"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\(?:left|right)(?![A-Za-z])"), ""),
    (re.compile(r"\\(?:approx|sim|quad)(?![A-Za-z])"), " "),
    (re.compile(r"\s+"), " "),
]


class Number(NamedTuple):
    """An exact number, whether a percent sign follows it, its unit ('' for none), and how it was written."""

    value: Fraction
    percent: bool
    unit: str
    text: str


@limits(seconds=10, confined=True)
def numeric_answer(
    prompt: Prompt,
    rollout: Rollout,
    *,
    absolute: float = 0.0,
    relative: float = 0.0,
    percent_as_fraction: bool = False,
    last_number: bool = False,
) -> Score:
    """1.0 if the answer is a number within a tolerance of prompt.reference, else 0.0.

    Right when |answer - reference| <= max(absolute, relative |reference|), in exact arithmetic. Reads 1,234.5, -3/4,
    \\frac{3}{4}, 6.02e23, 6.02 \\times 10^{23}, 1.5 million and 50%; a comma separates thousands only. A unit may be
    left out, but not contradict the reference's (10 m, 10 cm). The answer is what stands under the last \\boxed{}, ####,
    <answer> or 'answer is', and has to be one number ('4 or 5', '< 5' and '2x' are wrong). last_number: without such a
    mark read the last number of the text. percent_as_fraction: 50% is 0.5; else a percent sign is a unit. Raises
    ValueError when the reference is no finite number, or a tolerance is negative or not finite.
    """
    if not all(math.isfinite(one) and one >= 0 for one in (absolute, relative)):
        raise ValueError(f"absolute is {absolute} and relative {relative}; expected finite numbers of at least 0")
    reference = reference_number(prompt.reference)
    expected = scaled(reference, percent_as_fraction)
    found, how = answer_number(rollout.text, last_number)
    evidence: dict[str, Any] = {"expected": str(prompt.reference)[-SHOWN:], "how": how}
    if found is None:
        feedback = "There is no single number as the final answer."
        return Score(0.0, feedback=feedback, evidence=evidence | {"read": None, "correct": False})
    gap = abs(scaled(found, percent_as_fraction) - expected)
    near = gap <= max(Fraction(repr(absolute)), Fraction(repr(relative)) * abs(expected))
    correct = near and not contradict(found.unit, reference.unit)
    feedback = f"The answer {found.text[:SHOWN]} is {'correct' if correct else 'wrong'}."
    return Score(
        float(correct), feedback=feedback, evidence=evidence | {"read": found.text[:SHOWN], "correct": correct}
    )


def answer_number(text: str, unmarked: bool) -> tuple[Number | None, str | None]:
    """The number that is the final answer, and the mark that it stood under."""
    text = after_thoughts(text)
    if (found := final_answer(text)) is not None:
        return only_number(found.text), found.how
    return (number_at_end(text[-TAIL:]), "last_number") if unmarked else (None, None)


def only_number(text: str) -> Number | None:
    """The number in a text that holds one and is no larger term: None for '4 or 5', '< 5', 'x - 5' and '\\sqrt{5}'."""
    text = respelled(text)
    matches = list(NUMBER.finditer(text))
    if len(matches) != 1:
        return None
    before, after = text[: matches[0].start()], text[matches[0].end() :]
    minus_of_a_term = (matches[0]["sign"] or "").endswith(" ") and before.strip()[-1:] not in ("", "=", ":")
    if has_digits(before + after) or TERM_BEFORE.search(before) or TERM_AFTER.match(after) or minus_of_a_term:
        return None
    return number(matches[0])


def number_at_end(text: str) -> Number | None:
    """The last number in a text, where no other digit follows it and it is not bound into a term."""
    text = respelled(text)
    matches = list(NUMBER.finditer(text))
    if not matches or NEAR_BEFORE.search(text[: matches[-1].start()]) or NEAR_AFTER.match(text, matches[-1].end()):
        return None
    return None if has_digits(text[matches[-1].end() :]) else number(matches[-1])


def number(match: re.Match[str]) -> Number | None:
    """The value of what NUMBER matched; None for 1/0, for exponents out of range and for more than a number, as 2x."""
    bottom = exact(match["under"] or match["bottom"] or "1")
    unit = match["unit"] or ""
    exponent = int(match["e"] or match["ten"] or "0") + SCALES.get(unit.lower(), 0)
    if not bottom or abs(exponent) > LARGEST_EXPONENT:
        return None
    if unit.lower() in NOT_UNITS or (len(unit) == 1 and unit not in UNITS):
        return None
    value = exact(match["over"] or match["top"]) / bottom * Fraction(10) ** exponent
    power = match["power"] or {"²": "2", "³": "3"}.get(match["sign_power"] or "")
    return Number(
        value=-value if (match["sign"] or "")[:1] == "-" else value,
        percent=match["percent"] is not None,
        unit="" if not unit or unit.lower() in SCALES else unit_name(unit, power),
        text=match.group().strip(),
    )


def scaled(found: Number, percent_as_fraction: bool) -> Fraction:
    """The number, divided by 100 where a percent sign says so."""
    return found.value / 100 if found.percent and percent_as_fraction else found.value


def reference_number(reference: Any) -> Number:
    """The number that a reference is: a number, a string with one, or a worked solution that ends with '#### number'."""
    if isinstance(reference, int | float) and not isinstance(reference, bool) and math.isfinite(reference):
        return Number(Fraction(repr(reference)), False, "", repr(reference))
    found = only_number(reference.rpartition("####")[2].strip()) if isinstance(reference, str) else None
    if found is None:
        raise ValueError(
            f"reference is {reference!r:.80}; expected a finite number, or a string with one. "
            "Map it: data.columns.reference"
        )
    return found


def respelled(text: str) -> str:
    """The text with plain minus signs and spaces, and without LaTeX's fonts, spacing and dollar signs."""
    for pattern, replacement in SPELLING:
        text = pattern.sub(replacement, text)
    return text.strip()


def has_digits(text: str) -> bool:
    """Whether any character stands for a digit, in any script."""
    return any(character.isdigit() for character in text)


def exact(digits: str) -> Fraction:
    """'1,234.50' -> 1234.5; NUMBER has capped the length."""
    return Fraction(digits.replace(",", "").rstrip("."))
