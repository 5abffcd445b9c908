"""Sums worked out in two steps, right and wrong, for process reward models without any download."""

from __future__ import annotations

import random
from collections.abc import Iterator

from llmrl.data.read import Row
from llmrl.data.tasks import addition, turn


def addition_solutions(*, size: int = 4096, seed: int = 0, split: str = "train", accuracy: float = 1.0) -> list[Row]:
    """Sums of two numbers below 20 worked out in two lines, "7+2=9" and "9+10=19".

    Each line comes out right with probability `accuracy`, else one to five off; the second goes on from the first.
    """
    worked = _worked(size, seed, split, accuracy)
    return [row | {"completion": turn("assistant", "\n".join(steps))} for row, steps, _ in worked]


def addition_steps(*, size: int = 4096, seed: int = 0, split: str = "train", accuracy: float = 0.6) -> list[Row]:
    """The same as step data; a step is labelled 1 where what it comes to is right."""
    return [row | {"steps": steps, "labels": labels} for row, steps, labels in _worked(size, seed, split, accuracy)]


def _worked(size: int, seed: int, split: str, accuracy: float) -> Iterator[tuple[Row, list[str], list[int]]]:
    rng = random.Random(seed)
    for row in addition(size=size, seed=seed, split=split):
        first, second = map(int, row["prompt"][0]["content"].rstrip("=").split("+"))
        found, steps, labels = first, [], []
        for part, right in ((second % 10, first + second % 10), (second - second % 10, first + second)):
            result = found + part
            if rng.random() >= accuracy:
                result = rng.choice([n for n in range(max(0, result - 5), result + 6) if n != result])
            steps.append(f"{found}+{part}={result}")
            labels.append(int(result == right))
            found = result
        yield row, steps, labels
