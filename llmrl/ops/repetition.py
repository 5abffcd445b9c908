"""How much a sequence repeats itself. Plain Python, so that scorers and combiners share it."""

from __future__ import annotations

from collections.abc import Sequence


def repeated(units: Sequence[object], n: int) -> float:
    """1 - distinct n-grams / n-grams, in [0, 1); 0.0 for fewer than n units."""
    num = len(units) - n + 1
    if num < 1:
        return 0.0
    return 1 - len(set(zip(*(units[start:] for start in range(n)), strict=False))) / num
