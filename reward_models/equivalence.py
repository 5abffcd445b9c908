"""Whether two written answers are the same, as far as that shows without algebra: as strings, exact numbers, times."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

LONGEST = 4_096  # characters; longer answers equal nothing
PLACES = 10**6  # where one side is written as a decimal, both are rounded to six places, as math-verify does

DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3}){1,20}|[0-9]{1,60})(?:\.[0-9]{0,60})?|\.[0-9]{1,60}"
VALUE = re.compile(
    rf"(?P<sign>[+-]?)\s?(?:\\frac\{{(?P<over>-?(?:{DIGITS}))\}}\{{(?P<under>(?:{DIGITS}))\}}"
    rf"|(?P<top>{DIGITS})(?:\s?/\s?(?P<bottom>{DIGITS}))?)"
)
WORD = re.compile(r"[A-Za-z]{2}[A-Za-z ]*")  # one letter is a variable, whose case counts
TIME = re.compile(r"(?P<time>[0-9]{1,2}:[0-5][0-9](?::[0-5][0-9])?)\s?(?P<half>[aApP]\.?\s?[mM]\.?)?")

MEASURES = {
    "mm": "millimeter millimeters millimetre millimetres",
    "cm": "centimeter centimeters centimetre centimetres",
    "km": "kilometer kilometers kilometre kilometres",
    "m": "meter meters metre metres",
    "in": "inch inches",
    "ft": "foot feet",
    "yd": "yard yards",
    "mi": "mile miles",
    "mg": "milligram milligrams",
    "g": "gm gram grams",
    "kg": "kilogram kilograms",
    "lb": "lbs pound pounds",
    "oz": "ounce ounces",
    "ml": "milliliter milliliters millilitre millilitres",
    "l": "liter liters litre litres",
    "gal": "gallon gallons",
    "s": "sec secs second seconds",
    "min": "mins minute minutes",
    "h": "hr hrs hour hours",
    "day": "days",
    "week": "weeks",
    "month": "months",
    "year": "yr yrs years",
    "°": "deg degree degrees",
    "rad": "radian radians",
    "%": "percent percentage pct",
    "$": "dollar dollars usd bucks",
    "cent": "cents",
    "mph": "",
}
MEASURE = {word: short for short, words in MEASURES.items() for word in [short, *words.split()]}
SQUARED = {"square": "^2", "sq": "^2", "cubic": "^3", "cu": "^3"}
POWER = r"(?:\s?\^\s?\{?\s?(?P<power>[23])\s?\}?)?"
WORDS = r"(?:[A-Za-z]{2,30}\.?|[mgshLl](?![A-Za-z]))(?:[\s/]{1,2}[A-Za-z]{1,30}\.?){0,3}"
# single letters are variables, except for these, and only after a space
UNIT = re.compile(rf"(?:\s?(?P<sign>[%°])|\s(?P<words>(?!(?:or|and|i)\b){WORDS})){POWER}\Z")

FONTS = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s?\{([^{}]*)\}")
REWRITES = [
    (re.compile(r"\^\s?(?:\{\s?\\circ\s?\}|\\circ)|\\degree"), "°"),
    (re.compile(r"\\[dtc]frac"), r"\\frac"),
    (re.compile(r"\\frac\s?([0-9])\s?([0-9])"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\sqrt\s?([0-9A-Za-z])"), r"\\sqrt{\1}"),
    (re.compile(r"\\(?:left|right)(?![A-Za-z])|(?<!\\)\\[!,;: ()\[\]]|\\?\$|\*\*"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"(?<=\{)\s|\s(?=[{}])|(?<=\})\s(?![A-Za-z])"), ""),
]


class Quantity(NamedTuple):
    """An exact number, whether it was written as a decimal, and the unit after it, '' for none."""

    value: Fraction
    decimal: bool
    unit: str


def equivalent(answer: str, reference: str) -> bool:
    """Whether the two answers are the same as far as `verdict` can tell."""
    return verdict(answer, reference) is True


def verdict(answer: str, reference: str) -> bool | None:
    """True or False where strings, exact numbers, times or contradicting units decide, None where they do not.

    A unit on one side only is no contradiction, nor is n% to n or to n/100. A time such as 10:30 equals only a time.
    """
    if max(len(answer), len(reference)) > LONGEST:
        return False
    a, b = normalised(answer), normalised(reference)
    if not a or not b:
        return False
    if a.replace(" ", "") == b.replace(" ", "") or (WORD.fullmatch(a) and a.lower() == b.lower()):
        return True
    if TIME.fullmatch(a) or TIME.fullmatch(b):
        return same_time(a, b)
    left, right = split_unit(a), split_unit(b)
    if contradict(left[1], right[1]):
        return False
    x, y = quantity(*left), quantity(*right)
    if x is None or y is None:
        return None
    if x.decimal or y.decimal:
        return any(round(p * PLACES) == round(q * PLACES) for p, q in readings(x, y))
    return any(p == q for p, q in readings(x, y))


def readings(x: Quantity, y: Quantity) -> list[tuple[Fraction, Fraction]]:
    """The pairs of values that may be equal: n% against no percent sign stands for n and for n/100."""
    pairs = [(x.value, y.value)]
    if (x.unit == "%") != (y.unit == "%"):
        scaled = (x.value / 100, y.value) if x.unit == "%" else (x.value, y.value / 100)
        pairs.append(scaled)
    return pairs


@lru_cache(maxsize=4096)
def normalised(text: str) -> str:
    """The text without dollar signs, LaTeX spacing and font commands, doubled spaces and the closing period."""
    text = FONTS.sub(r" \1 ", " ".join(text.replace("\u2212", "-").split()))
    for pattern, replacement in REWRITES:
        text = pattern.sub(replacement, text)
    return " ".join(text.split()).rstrip(". ")


def split_unit(text: str) -> tuple[str, str]:
    """A normalised text and the unit that ends it: '10 square feet' -> ('10', 'ft^2'). '' where there is none."""
    start = len(text) - 64
    match = UNIT.search(text, max(start, 0))
    if match is None or not text[: match.start()].strip():
        return text, ""
    return text[: match.start()].strip(), unit_name(match["sign"] or match["words"], match["power"])


def unit_name(words: str, power: str | None) -> str:
    """One spelling for each unit: '°', 'cm^2', 'mi/h', and of other nouns the words."""
    suffix, names = f"^{power}" if power else "", []
    for word in re.split(r"[\s/]+", words.lower()):
        word = word.rstrip(".")
        if word in SQUARED:
            suffix = SQUARED[word]
        elif word and word not in ("per", "of", "the"):
            names.append(MEASURE.get(word, word.rstrip("s")) + suffix)
            suffix = ""
    return " ".join(names)


def contradict(one: str, other: str) -> bool:
    """Whether two units cannot both be meant. Measures have to be the same, other nouns to have one word in common."""
    if not one or not other or one == other:
        return False
    first, second = one.split(), other.split()
    measures = [[word for word in words if word.partition("^")[0] in MEASURES] for words in (first, second)]
    if measures[0] and measures[1]:
        return measures[0] != measures[1]
    return not set(first) & set(second)


def same_time(a: str, b: str) -> bool:
    """Whether both are times, the same ones; morning or afternoon counts where both say it."""
    one, other = TIME.fullmatch(a), TIME.fullmatch(b)
    if one is None or other is None:
        return False
    halves = [match["half"] and match["half"][0].lower() for match in (one, other)]
    times = [match["time"].lstrip("0") for match in (one, other)]
    return times[0] == times[1] and (None in halves or halves[0] == halves[1])


def quantity(text: str, unit: str = "") -> Quantity | None:
    """Reads integers, decimals, a/b and \\frac{a}{b}; None for anything else."""
    match = VALUE.fullmatch(text)
    if match is None:
        return None
    top, bottom = match["over"] or match["top"], match["under"] or match["bottom"] or "1"
    if not (denominator := exact(bottom)):
        return None
    value = exact(top) / denominator * (-1 if match["sign"] == "-" else 1)
    return Quantity(value, "." in text, unit)


def exact(digits: str) -> Fraction:
    """'1,234.50' -> 1234.5. The caller's pattern has capped its length and ruled out exponents."""
    return Fraction(digits.replace(",", "").rstrip("."))
