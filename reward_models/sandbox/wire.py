"""Reading what a sandbox answers: JSON text in, exact built-in values out, whatever was sent."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Any

DEPTH = 70  # a little deeper than what an honest driver sends
COLLISIONS = 100  # elements of one hash; many of them would make a set or dict take quadratic time


def decode(text: bytes) -> list[Any]:
    """An answer, [nonce, kind, value], out of exact built-in types alone. Raises ValueError for anything else."""
    try:
        nonce, kind, value = json.loads(text)
        if type(nonce) is not str or type(kind) is not str:
            raise ValueError("nonce or kind is not text")
        return [nonce, kind, plain(value)]
    except (ValueError, TypeError, RecursionError, OverflowError, IndexError) as error:
        raise ValueError(f"no answer of the expected form: {type(error).__name__}") from error


def plain(node: Any, depth: int = 0) -> Any:
    """The value that a parsed answer stands for: scalars as they are, the rest as [tag, ...]."""
    if not isinstance(node, list):
        if isinstance(node, dict):
            raise ValueError("a JSON object")
        return node
    tag, *rest = node
    if depth > DEPTH:
        raise ValueError("nested too deep")
    if tag == "i":
        return int(rest[0], 16)
    if tag == "b":
        return bytes.fromhex(rest[0])
    values = [plain(one, depth + 1) for one in rest]
    if tag == "l":
        return values
    if tag == "t":
        return tuple(values)
    if tag == "c":
        real, imaginary = values
        return complex(float(real), float(imaginary))
    if tag == "s":
        return set(spread(values))
    if tag == "f":
        return frozenset(spread(values))
    if tag == "d":
        return dict(zip(spread(values[::2]), values[1::2], strict=True))
    raise ValueError("an unknown tag")


def spread(values: list[Hashable]) -> Iterable[Hashable]:
    """The values. Raises ValueError where so many share a hash that hashing them is an attack."""
    if len(values) > COLLISIONS and max(Counter(map(spot, values)).values()) > COLLISIONS:
        raise ValueError("colliding hashes")
    return values


def spot(value: Hashable) -> str:
    """The value's hash as text: strings are hashed with a secret, so counting them cannot be attacked in turn."""
    return str(hash(value))
