"""What a run's scores were bought with, and what is left to buy."""

from __future__ import annotations

import math
from collections.abc import Sequence


def entropy_law(entropies: Sequence[float], scores: Sequence[float]) -> dict[str, float]:
    """Least-squares fit of score = -a · e^entropy + b over a run's evaluations (arXiv:2505.22617, section 2).

    Returns a, b, the ceiling b - a that is reached without entropy, and R² (r2). Raises ValueError unless there are two
    different entropies.
    """
    x = [math.exp(entropy) for entropy in entropies]
    if len(set(x)) < 2 or len(x) != len(scores):
        raise ValueError(f"{len(set(x))} different entropies and {len(scores)} scores; expected pairs, two at least")
    mean_x, mean_y = math.fsum(x) / len(x), math.fsum(scores) / len(scores)
    spread = math.fsum((u - mean_x) ** 2 for u in x)
    slope = math.fsum((u - mean_x) * (v - mean_y) for u, v in zip(x, scores, strict=True)) / spread
    b = mean_y - slope * mean_x
    left = math.fsum((v - b - slope * u) ** 2 for u, v in zip(x, scores, strict=True))
    total = math.fsum((v - mean_y) ** 2 for v in scores)
    return {"a": -slope, "b": b, "ceiling": b + slope, "r2": 1 - left / total if total else 1.0}
