"""Whether two written answers are the same: as exact numbers where both are numbers, else as normalised strings."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

LONGEST = 1_000  # characters; longer answers equal nothing

DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3}){1,20}|[0-9]{1,60})(?:\.[0-9]{0,60})?|\.[0-9]{1,60}"
VALUE = rf"(?P<sign>[+-]?)\s?(?:\\frac\{{(?P<over>-?(?:{DIGITS}))\}}\{{(?P<under>(?:{DIGITS}))\}}" + (
    rf"|(?P<top>{DIGITS})(?:\s?/\s?(?P<bottom>{DIGITS}))?)"
)
# single letters are variables, except for these
UNIT = r"\s?(?P<sign_unit>[%°])|\s(?P<word_unit>(?!(?:or|and)\b)(?:[A-Za-z]{2,30}|[mgshLl])(?:\s[A-Za-z]{1,30}){0,2})"
QUANTITY = re.compile(rf"{VALUE}(?:{UNIT})?")

REWRITES = [
    (re.compile(r"\\(?:text|textbf|mathrm|mbox)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\degree"), "°"),
    (re.compile(r"\\[dt]frac"), r"\\frac"),
    (re.compile(r"\\frac\s*([0-9])\s*([0-9])"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\sqrt\s*([0-9A-Za-z])"), r"\\sqrt{\1}"),
    (re.compile(r"\\(?:left|right)(?![A-Za-z])|\\[!,;: ]|\\[()\[\]]|\\?\$|\*\*"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"(?<=[{}])\s+|\s+(?=[{}])"), ""),
]


class Quantity(NamedTuple):
    """An exact number and the unit written after it, '' for none."""

    value: Fraction
    unit: str


def equivalent(answer: str, reference: str) -> bool:
    """Whether the two answers are the same number, with units that do not contradict, or the same normalised string."""
    if max(len(answer), len(reference)) > LONGEST:
        return False
    a, b = normalised(answer), normalised(reference)
    left, right = quantity(a), quantity(b)
    if left is not None and right is not None:
        return left.value == right.value and (left.unit == right.unit or not (left.unit and right.unit))
    return bool(a) and a.replace(" ", "") == b.replace(" ", "")


def normalised(text: str) -> str:
    """The text without dollar signs, LaTeX spacing and font commands, doubled spaces and the closing period."""
    text = text.replace("\u2212", "-")
    for pattern, replacement in REWRITES:
        text = pattern.sub(replacement, text)
    return " ".join(text.split()).rstrip(". ")


def quantity(text: str) -> Quantity | None:
    """Reads integers, decimals, a/b and \\frac{a}{b} with an optional unit; None for anything else."""
    match = QUANTITY.fullmatch(text)
    if match is None:
        return None
    top, bottom = match["over"] or match["top"], match["under"] or match["bottom"] or "1"
    if not (denominator := exact(bottom)):
        return None
    value = exact(top) / denominator * (-1 if match["sign"] == "-" else 1)
    return Quantity(value, (match["sign_unit"] or match["word_unit"] or "").lower().rstrip("s"))


def exact(digits: str) -> Fraction:
    """'1,234.50' -> 1234.5. The caller's pattern has capped its length and ruled out exponents."""
    return Fraction(digits.replace(",", "").rstrip("."))
