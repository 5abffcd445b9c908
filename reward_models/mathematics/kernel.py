"""math-verify behind a refusal and a deadline: the only place that computer algebra is called from.

Only its LaTeX path is used. Its path for plain text hands what it finds to sympy's parse_expr, which is Python's eval;
that one is never reached from here. Its own time-outs need the main thread and swallow what they interrupt, so they
are off.
"""

from __future__ import annotations

import logging
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache, partial
from types import ModuleType
from typing import Any

from reward_models.mathematics.refusals import refusal

SECONDS = 0.4  # processor time of one comparison; ordinary ones take 0.02
AGAIN = 0.02  # seconds between repeated interrupts: one that falls into a finaliser is swallowed

RELATION = re.compile(r"[<>]|\\(?:leq?|geq?|lt|gt)(?![a-z])")
OR = re.compile(r"\s*(?:\\text\s?\{\s?or\s?\}|\\lor\b|\\vee\b|\\quad\s?\\text\s?\{or\}|(?<![A-Za-z])or(?![A-Za-z]))\s*")


class TooSlow(BaseException):
    """The deadline has passed. Not an Exception: the kernel catches those."""


class BrokenReference(ValueError):
    """The reference itself cannot be compared with anything."""


@cache
def library() -> ModuleType:
    """math_verify's parser, imported once with all that comparing needs, and run once.

    The first use builds the grammar's tables and fills sympy's caches, 0.27 s: most of what a comparison may take.
    """
    import math_verify.grader
    import math_verify.parser

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time-outs are off
    grammar = math_verify.parser
    squares = (grammar.parse_latex_cached(side) for side in ("x^2+2x+1", "(x+1)^2"))
    math_verify.grader.verify(*squares, timeout_seconds=None)
    return grammar


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raises TooSlow in the block after so much processor time. Does nothing outside of the main thread.

    Processor time, so that a verdict does not depend on what else the machine does.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGPROF, interrupt)
    try:
        try:
            signal.setitimer(signal.ITIMER_PROF, seconds, AGAIN)
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    finally:  # once more: an interrupt may have come just before the first
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def same(answer: str, reference: str, *, units: bool = False, regions: bool = True) -> tuple[bool, str]:
    """(whether the two LaTeX expressions are equal, how that was found), by math-verify.

    units: strip units as math-verify does. regions: 'x < 2 or x > 3' is a set, and a relation may equal one.
    """
    return guarded(partial(verified, units=units, regions=regions), answer, reference)


def zero_difference(answer: str, reference: str) -> tuple[bool, str]:
    """(whether sympy simplifies the difference of the two to 0, how that was found), without math-verify's rules."""
    return guarded(cancels, answer, reference)


def guarded(compare: Callable[[str, str], bool], answer: str, reference: str) -> tuple[bool, str]:
    """The comparison's verdict and how it came about.

    An answer that is refused or takes longer than 0.4 s is wrong: it must not be dropped for being hostile, nor may the
    wrong answers to a slow reference be, while the right ones count. Raises BrokenReference where the reference is
    refused or takes too long to read.
    """
    if reason := refusal(answer):
        return False, f"refused: {reason}"
    if reason := refusal(reference):
        raise BrokenReference(f"the reference {reference[:80]!r} cannot be compared: {reason}. Mend the data.")
    library()  # neither an import nor the first use counts as the comparison's time
    try:
        with deadline(SECONDS):
            return compare(answer, reference), "algebra"
    except TooSlow:
        pass
    try:
        with deadline(SECONDS):
            expression(reference)
    except TooSlow:
        message = f"the reference {reference[:80]!r} takes longer than {SECONDS} s to read. Mend the data."
        raise BrokenReference(message) from None
    return False, "refused: takes too long"


def verified(answer: str, reference: str, *, units: bool, regions: bool) -> bool:
    """math-verify's verdict."""
    from math_verify.grader import verify

    gold = expression(reference, units, regions)
    found = of_answer(partial(expression, answer, units, regions)) if gold is not None else None
    if found is None:
        return False
    return verify(gold, found, allow_set_relation_comp=regions, timeout_seconds=None)


def cancels(answer: str, reference: str) -> bool:
    """Whether the difference simplifies to 0."""
    import sympy

    gold = parsed(reference)
    found = of_answer(partial(parsed, answer)) if gold is not None else None
    try:
        return found is not None and bool(sympy.simplify(found - gold) == 0)
    except Exception:  # sympy's own errors come in many classes; what cannot be subtracted is not equal
        return False


def of_answer(parse: Callable[[], Any]) -> Any:
    """What the answer parses to, None where that takes too much memory."""
    try:
        return parse()
    except MemoryError:
        return None


def parsed(latex: str) -> Any:
    """The sympy object of normalised LaTeX, or None. Raises MemoryError."""
    try:
        return library().parse_latex_cached(latex)
    except MemoryError:
        raise
    except Exception:  # the grammar's errors come in many classes
        return None


@lru_cache(maxsize=256)
def expression(text: str, units: bool = False, regions: bool = False) -> Any:
    """The sympy object that the LaTeX text is, or None. regions: relations joined by 'or' become a set."""
    if regions and RELATION.search(text) and len(parts := OR.split(text)) > 1:
        found = [expression(part.strip(" ,$"), units) for part in parts]
        if (region := union(found)) is not None:
            return region
    parser = library()
    config = parser.NormalizationConfig(
        basic_latex=True, units=units, malformed_operators=True, nits=True, boxed="none", equations=False
    )
    return parsed(parser.normalize_latex(text, config))


def union(relations: list[Any]) -> Any:
    """The set of reals where one of the relations holds, or None where they are not relations in one letter."""
    import sympy
    from math_verify.grader import is_relation

    if not all(one is not None and is_relation(one) and len(one.free_symbols) == 1 for one in relations):
        return None
    if len({one.free_symbols.pop() for one in relations}) > 1:
        return None
    try:
        return sympy.Union(*(one.as_set() for one in relations))
    except Exception:  # sympy says NotImplementedError, TypeError and more of what it cannot solve
        return None
