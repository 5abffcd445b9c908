"""Small arithmetic tasks that are generated, for runs without any download.

Every source splits its problems by their text into 'train' and 'test', a tenth: the two never share a problem,
whatever the seeds and sizes.
"""

from __future__ import annotations

import itertools
import random
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from llmrl.data.read import Row
from llmrl.errors import DataError

TEST_SHARE = 10  # one problem in this many
ADDENDS = range(20)


def arithmetic_chain(*, size: int = 4096, seed: int = 0, split: str = "train") -> list[Row]:
    """Chains such as 37-2-2 with their value as reference: three to five numbers, every partial result in 0..99."""
    chains = _chains(random.Random(seed), split)
    return [_row(text, value) for text, _, value in itertools.islice(chains, size)]


def arithmetic_demonstrations(
    *, size: int = 4096, seed: int = 0, split: str = "train", think_share: float = 0.4, sloppy: int = 10
) -> list[Row]:
    """Chains answered with worked steps in `think_share` of the rows, else by a guess at most `sloppy` off.

    <think>37-2=35-2=33</think><answer>33</answer>, or only <answer>29</answer>, cut to 0..99.
    """
    rng = random.Random(seed)
    rows = []
    for text, steps, value in itertools.islice(_chains(rng, split), size):
        if rng.random() < think_share:
            answer = f"<think>{steps}</think><answer>{value}</answer>"
        else:
            answer = f"<answer>{max(0, min(99, value + rng.randint(-sloppy, sloppy)))}</answer>"
        rows.append(_row(text, value) | {"completion": turn("assistant", answer)})
    return rows


def addition(*, size: int = 4096, seed: int = 0, split: str = "train") -> list[Row]:
    """Sums of two numbers below 20, "7+12=", with the sum as reference.

    There are few: all of a split in random order, then all of them again in another.
    """
    return [_row(text, total) for text, total in itertools.islice(_sums(random.Random(seed), split), size)]


def addition_demonstrations(
    *, size: int = 4096, seed: int = 0, split: str = "train", accuracy: float = 1.0
) -> list[Row]:
    """Sums answered rightly with probability `accuracy`, else one to five off and never below 0."""
    rng = random.Random(seed)
    rows = []
    for text, total in itertools.islice(_sums(rng, split), size):
        answer = total if rng.random() < accuracy else _wrong(rng, total)
        rows.append(_row(text, total) | {"completion": turn("assistant", str(answer))})
    return rows


def addition_pairs(*, size: int = 4096, seed: int = 0, split: str = "train") -> list[Row]:
    """Sums with the right answer chosen and one that is one to five off rejected."""
    rng = random.Random(seed)
    return [
        _row(text, total)
        | {"chosen": turn("assistant", str(total)), "rejected": turn("assistant", str(_wrong(rng, total)))}
        for text, total in itertools.islice(_sums(rng, split), size)
    ]


def _row(text: str, value: int) -> Row:
    return {"prompt": turn("user", text), "reference": str(value)}


def turn(role: str, content: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": content}]


def in_split(split: str) -> Callable[[str], bool]:
    if split not in ("train", "test"):
        raise DataError(f"split {split!r} of a generated task; expected train or test.")
    return lambda text: (zlib.crc32(text.encode()) % TEST_SHARE == 0) == (split == "test")


def _chains(rng: random.Random, split: str) -> Iterator[tuple[str, str, int]]:
    """(problem, worked steps, value) without end."""
    wanted = in_split(split)
    while True:
        value = rng.randint(1, 50)
        text = steps = str(value)
        for _ in range(rng.randint(2, 4)):
            operand, sign = rng.randint(1, 9), rng.choice((1, -1))
            if not 0 <= value + sign * operand <= 99:
                sign = -sign
            value += sign * operand
            written = f"{'+' if sign > 0 else '-'}{operand}"
            text += written
            steps += f"{written}={value}"
        if wanted(text):
            yield text, steps, value


def _sums(rng: random.Random, split: str) -> Iterator[tuple[str, int]]:
    wanted = in_split(split)
    every = [(f"{a}+{b}=", a + b) for a in ADDENDS for b in ADDENDS]
    pool = [(text, total) for text, total in every if wanted(text)]
    while True:
        yield from rng.sample(pool, len(pool))


def _wrong(rng: random.Random, total: int) -> int:
    return rng.choice([n for n in range(max(0, total - 5), total + 6) if n != total])
