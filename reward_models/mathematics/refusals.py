"""What is never handed to a computer algebra system: decided in one pass over the text, before any of it is parsed.

The pass keeps, for every group, an upper bound of log2 of the numbers in it, so that a tower of exponents, a factorial
of a factorial or a power of a power is seen for its size and not for its looks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from math import log2

LONGEST = 4_096  # characters
DEEPEST = 64  # open brackets
INTEGER_BITS = 4_096  # of one written integer
POWER_BITS = 16_384  # of a power, evaluated; 5^{2022} and 2^{10000} are answers people give
FACTORIAL = 9  # bits of n in n!; 512! has 3,875
SYMBOLIC_DEGREE = 13  # bits of n in x^n
EXPANDED_DEGREE = 7  # bits of n in (x + 1)^n
RANGE_BITS = 12  # of any number beside a sum, a product, a limit or another operator that runs over its numbers
INDEX_BITS = 7  # of n in the n-th root
BARS = 64  # of absolute values, which show no depth
TOKENS = 600  # numbers, letters, signs and commands

BITS_PER_DIGIT = 3.33
TOKEN = re.compile(r"\\[A-Za-z]+|\\.|[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+|[A-Za-z]|[^\s]", re.DOTALL)
CODE = re.compile(r"__|`|\b(?:import|lambda|exec|eval|getattr|globals|subprocess)\b|\b(?:os|sys)\.|\bopen\s?\(")
EXPONENT_NOTATION = re.compile(r"[0-9][eE][+-]?[0-9]{4}")
UNBRACED = re.compile(r"\^\s?\\[dtc]?(?:frac|binom|sqrt)")
RANGES = re.compile(
    r"\\(?:sum|prod|i*int|oint|lim|[dt]?binom|Gamma|gamma|exp|sinh|cosh|gcd|lcm|max|min|mod|pmod)(?![a-z])"
)
EAGER = re.compile(
    r"\\(?:det|xrightarrow)(?![a-z])|\\(?:operatorname|mathrm|text)\s?\{\s?(?:zeros|ones|eye|diag|hstack|vstack|rank|rref"
    r"|nullspace|norm|cols|rows|eig[a-z]*|diagonalize|svd|SVD|orth[a-z]*|det|tr|trace)\s?\}"
)
NUMBERS = {"e": 2.0, "\\pi": 2.0}
OPENING, CLOSING = {"{", "(", "[", "\\{", "\\lfloor", "\\lceil"}, {"}", ")", "]", "\\}", "\\rfloor", "\\rceil"}
SIGNS = {"+", "-", "\\pm", "\\mp", "=", "<", ">", ",", ";", "&", "\\\\", "\\le", "\\ge", "\\leq", "\\geq", "\\cup"}
DIVISIONS = {"/", ":", "\\div", "\\frac", "\\dfrac", "\\tfrac", "\\cfrac"}


class Refused(Exception):
    """Raised inside the pass with the reason."""


@dataclass
class Atom:
    """A number, letter or group: bits of its size, whether a letter is in it, a sum, a division."""

    bits: float
    symbolic: bool = False
    summed: bool = False
    divided: bool = False
    group: bool = False


@dataclass
class Frame:
    """An open group: the product being read, and the sum of the products before it."""

    product: float = 0.0
    total: float = 0.0
    symbolic: bool = False
    summed: bool = False
    divided: bool = False
    base: Atom | None = None  # the group is an exponent of this
    index: bool = False  # the group is the n of an n-th root
    label: bool = False  # the group is a subscript
    last: Atom | None = None

    def end_product(self) -> None:
        if self.divided:  # sums of fractions have the denominators multiplied
            self.total += self.product
        elif self.total and self.product:
            self.total = max(self.total, self.product) + 1
        else:
            self.total = max(self.total, self.product)
        self.product, self.last = 0.0, None

    def add(self, atom: Atom) -> None:
        self.product += atom.bits
        self.symbolic |= atom.symbolic
        self.divided |= atom.divided
        self.last = atom

    def replace(self, atom: Atom) -> None:
        self.product += atom.bits - (self.last.bits if self.last else 0.0)
        self.last = atom

    def atom(self) -> Atom:
        self.end_product()
        return Atom(self.total, self.symbolic, self.summed, self.divided, group=True)


@lru_cache(maxsize=4096)
def refusal(text: str) -> str | None:
    """Why the text is not compared as an expression, or None. Takes time in proportion to at most 4,096 characters."""
    if len(text) > LONGEST:
        return f"longer than {LONGEST:,} characters"
    if CODE.search(text):
        return "looks like program code"
    if EAGER.search(text):
        return "asks for a matrix operation"
    if EXPONENT_NOTATION.search(text):
        return "exponent too large"
    if text.count("|") > BARS:
        return "too many absolute values"
    try:
        largest = largest_number(text)
    except Refused as reason:
        return str(reason)
    if largest > RANGE_BITS and RANGES.search(text):
        return "an operator over too large a range"
    if largest > INDEX_BITS and UNBRACED.search(text):
        return "exponent too large"
    return None


def largest_number(text: str) -> float:
    """Bits of the largest number that evaluating the text can meet. Raises Refused where that is too many."""
    frames, largest, exponent_of, root, label = [Frame()], 0.0, None, False, False
    for count, match in enumerate(TOKEN.finditer(text)):
        if count > TOKENS:
            raise Refused(f"more than {TOKENS} parts")
        token, frame = match.group(), frames[-1]
        if token in OPENING:
            if len(frames) > DEEPEST:
                raise Refused(f"nested deeper than {DEEPEST}")
            frames.append(Frame(base=exponent_of, index=root and token == "[", label=label))
            exponent_of, root, label = None, False, False
            continue
        if token in CLOSING and len(frames) > 1:
            closed = frames.pop()
            frame, atom = frames[-1], closed.atom()
            if closed.index and (atom.bits > INDEX_BITS or atom.divided):
                raise Refused("root of too high an order")
            largest = max(largest, atom.bits)
            if not closed.label:
                finish(frame, closed.base, atom)
        elif label:  # x_1: a name
            label = False
            continue
        elif token == "_":
            label = True
            continue
        elif token == "^":
            exponent_of = frame.last or Atom(0.0, symbolic=True, summed=True)
            continue
        elif token == "!":
            frame.replace(factorial(frame.last or Atom(0.0)))
        elif token in SIGNS:
            if exponent_of is None:  # a sign in front of an exponent belongs to it
                frame.end_product()
                frame.summed = True
            continue
        elif token in DIVISIONS:
            frame.divided = True
            if exponent_of is not None:
                continue
        elif token[0] in "0123456789" or (token[0] == "." and len(token) > 1):
            finish(frame, exponent_of, number(token))
            exponent_of = None
        elif token[-1].isalpha():
            if token not in NUMBERS and len(token) > 1 and exponent_of is not None:
                continue  # \left, \text and the like: the exponent is still to come
            finish(frame, exponent_of, Atom(NUMBERS.get(token, 0.0), symbolic=token not in NUMBERS))
            exponent_of = None
        root = token == "\\sqrt"
        largest = max(largest, frame.last.bits if frame.last else 0.0)
    return largest


def finish(frame: Frame, base: Atom | None, atom: Atom) -> None:
    """Adds an atom to the product, or raises the product's last one to it."""
    if base is None:
        frame.add(atom)
    else:
        frame.replace(power(base, atom))


def power(base: Atom, exponent: Atom) -> Atom:
    """The size of base^exponent. Raises Refused."""
    degree = 2.0 ** min(exponent.bits, 64)
    if base.symbolic:
        if exponent.bits > (EXPANDED_DEGREE if base.group else SYMBOLIC_DEGREE):
            raise Refused("power of too high a degree")
    elif max(base.bits, 1.0) * degree > POWER_BITS:
        raise Refused("power too large")
    bits = base.bits * degree if not exponent.symbolic else base.bits + exponent.bits
    return Atom(bits, base.symbolic or exponent.symbolic, base.summed, base.divided, group=True)


def factorial(atom: Atom) -> Atom:
    """The size of atom!. Raises Refused."""
    if atom.bits > FACTORIAL:
        raise Refused("factorial too large")
    return Atom(max(atom.bits, 1.0) * 2.0**atom.bits, atom.symbolic, group=True)


def number(digits: str) -> Atom:
    """The size of a written number; of 0.001 that of its inverse. Raises Refused."""
    plain = digits.replace(",", "")
    whole = "." not in plain
    plain = plain.replace(".", "")
    significant = plain.lstrip("0") if whole else plain
    bits = len(significant) * BITS_PER_DIGIT
    if bits > INTEGER_BITS:
        raise Refused(f"a number of more than {INTEGER_BITS:,} bits")
    if whole and len(significant) < 16:
        bits = log2(max(int(significant or "0"), 1))
    return Atom(bits, divided=not whole)
