"""Confidence intervals for measured means. Quantiles are the normal distribution's; for a few seeds, Student's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple


class Interval(NamedTuple):
    """A mean and the ends of its confidence interval."""

    mean: float
    low: float
    high: float


def wilson(successes: float, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion; stays in [0, 1] and has width at 0 and n successes (Wilson 1927).

    Raises ValueError unless 0 <= successes <= n and n >= 1.
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} successes of {n}; expected 0 <= successes <= n and n >= 1")
    z, p = quantile(confidence), successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # at the ends the bound is exactly 0 or 1; rounding must not move it off
    return Interval(p, 0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half)


def clustered(values_by_cluster: Sequence[Sequence[float]], confidence: float = 0.95) -> Interval:
    """Mean of all values and its interval when values in a cluster depend on each other: samples of one prompt.

    SE² = C/(C-1) · Σ_c (Σ_i (v_ci - mean))² / n², with C clusters and n values (arXiv:2411.00640, with the
    small-sample factor that makes one value a cluster the ordinary standard error). One cluster says nothing of the
    spread: its interval is infinite. Raises ValueError without values.
    """
    clusters = [cluster for cluster in values_by_cluster if cluster]
    n = sum(len(cluster) for cluster in clusters)
    if n == 0:
        raise ValueError("no values; expected at least one")
    mean = math.fsum(v for cluster in clusters for v in cluster) / n
    if len(clusters) == 1:
        return Interval(mean, -math.inf, math.inf)
    squares = math.fsum(math.fsum(v - mean for v in cluster) ** 2 for cluster in clusters)
    half = quantile(confidence) * math.sqrt(len(clusters) / (len(clusters) - 1) * squares) / n
    return Interval(mean, mean - half, mean + half)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean of independent values and its interval, by the sample standard deviation (n-1). See `clustered`."""
    return clustered([[value] for value in values], confidence)


def quantile(confidence: float) -> float:
    """How many standard errors a two-sided interval of this confidence reaches: 0.95 -> 1.95996."""
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def paired(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean of b - a over the same problems, and its interval; [i] of both belong to one problem (arXiv:2411.00640)."""
    return mean_interval([y - x for x, y in zip(a, b, strict=True)], confidence)


def over_seeds(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean of a few runs and its interval, mean ± t·s/√n by Student's t; infinite for one run (Student 1908)."""
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Interval(mean, -math.inf, math.inf)
    error = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
    half = student_quantile(len(values) - 1, confidence) * error
    return Interval(mean, mean - half, mean + half)


def student_quantile(freedom: int, confidence: float = 0.95) -> float:
    """The t of P(|T| <= t) = confidence for whole degrees of freedom: (2, 0.95) -> 4.3027.

    Bisects the finite sums of Abramowitz & Stegun 26.7.3 and 26.7.4 over the angle atan(t / √freedom).
    """
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        angle = (low + high) / 2
        cosine = math.cos(angle)
        odd = freedom % 2
        term = cosine if odd else 1.0
        total = 0.0
        for k in range(1 + odd, freedom, 2):
            total += term
            term *= k / (k + 1) * cosine**2
        share = (angle + math.sin(angle) * total) * 2 / math.pi if odd else math.sin(angle) * total
        low, high = (angle, high) if share < confidence else (low, angle)
    return math.sqrt(freedom) * math.tan(low)


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p-value for two raters being equally often right, from the problems that only one of them got.

    2 · P(X <= min) for X binomial with n = only_a + only_b and 1/2, at most 1 (McNemar 1947, in its exact form).
    """
    n = only_a + only_b
    tail = sum(math.comb(n, i) for i in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**n)
