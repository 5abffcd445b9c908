"""What a check has found, and whether it came out as its paper says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from llmrl.ops.intervals import over_seeds


class Finding(NamedTuple):
    """effect: mean over the seeds; low, high: its 95 % interval over them. seeds 0: one number, worked out without chance.

    what: the number that was measured. above, below: where all of the interval should be. also: a further condition in
    words, and holds, whether it is met. came_out: both.
    """

    method: str
    what: str
    effect: float
    low: float
    high: float
    seeds: int
    above: float | None
    below: float | None
    also: str
    holds: bool
    came_out: bool
    command: str

    @property
    def expected(self) -> str:
        limits = [f"{side} {limit:g}" for side in ("above", "below") if (limit := getattr(self, side)) is not None]
        return "; ".join([" and ".join(limits), *([self.also] if self.also else [])])

    @property
    def points_there(self) -> bool:
        """Whether the mean is on the expected side, whatever the interval says; for a few seeds."""
        return within(self.effect, self.effect, self.above, self.below)


def found(
    method: str,
    what: str,
    values: Sequence[float] | float,
    *,
    above: float | None = None,
    below: float | None = None,
    also: tuple[str, bool] = ("", True),
    each: bool = False,
) -> Finding:
    """A finding from one number a seed, or from an exact number.

    also: a further condition in words, and whether it is met. each: what is expected holds without chance, so low and high
    are the least and the greatest of the seeds.
    """
    exact = isinstance(values, int | float)
    effect, low, high = (float(values),) * 3 if exact else over_seeds(values)
    if each:
        low, high = min(values), max(values)
    seeds, (condition, holds) = 0 if exact else len(values), also
    came_out = within(low, high, above, below) and bool(holds)
    command = f"python -m benchmarks.lab.run {method}"
    return Finding(method, what, effect, low, high, seeds, above, below, condition, bool(holds), came_out, command)


def within(low: float, high: float, above: float | None, below: float | None) -> bool:
    """Whether all from low to high is inside the limits."""
    return (above is None or low > above) and (below is None or high < below)
