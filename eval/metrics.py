"""Metrics over several samples of one problem."""

from __future__ import annotations

from math import comb


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Chance that k samples drawn without replacement hold a correct one: 1 - C(n-c, k) / C(n, k) (arXiv:2107.03374).

    Unbiased for k fresh samples. Raises ValueError unless 0 <= num_correct <= num_samples and 1 <= k <= num_samples.
    """
    if not 0 <= num_correct <= num_samples or not 1 <= k <= num_samples:
        raise ValueError(f"{num_correct} correct of {num_samples} at k = {k}; expected both within the samples")
    return 1 - comb(num_samples - num_correct, k) / comb(num_samples, k)
