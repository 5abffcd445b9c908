"""Rewards that depend on the length of a response. Plain numbers, so that scorers and combiners share them."""

from __future__ import annotations

import math


def overlong(length: float, *, max_tokens: float, buffer: float) -> float:
    """DAPO's soft penalty for long responses (arXiv:2503.14476, eq. 13), in [-1, 0].

    0 up to max_tokens - buffer, then ((max_tokens - buffer) - length) / buffer, and -1 from max_tokens on.
    """
    start = max_tokens - buffer
    if length <= start:
        return 0.0
    return -1.0 if length >= max_tokens else (start - length) / buffer


def cosine(length: float, *, max_tokens: float, at_zero: float, at_max: float) -> float:
    """Half a cosine wave from `at_zero` at length 0 to `at_max` at max_tokens and beyond (arXiv:2502.03373, section 4.2).

    at_max + (at_zero - at_max) (1 + cos(pi length / max_tokens)) / 2
    """
    progress = min(length / max_tokens, 1.0)
    return at_max + 0.5 * (at_zero - at_max) * (1 + math.cos(math.pi * progress))
