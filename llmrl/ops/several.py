"""Metrics over several samples of one problem. Both are exact expectations over k samples drawn without replacement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from fractions import Fraction
from math import comb


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Chance that k samples drawn without replacement hold a correct one: 1 - C(n-c, k) / C(n, k) (arXiv:2107.03374).

    Unbiased for k fresh samples. Raises ValueError unless 0 <= num_correct <= num_samples and 1 <= k <= num_samples.
    """
    if not 0 <= num_correct <= num_samples or not 1 <= k <= num_samples:
        raise ValueError(f"{num_correct} correct of {num_samples} at k = {k}; expected both within the samples")
    return 1 - comb(num_samples - num_correct, k) / comb(num_samples, k)


def majority_at_k(answers: Sequence[Hashable | None], right: Sequence[Hashable], k: int) -> float:
    """Chance that the most frequent answer among k samples drawn in random order, without replacement, is right.

    answers: one a sample, equal for samples that say the same; None: no answer, which has no vote. right: the answers
    that count as right. Ties go to the answer drawn first, so that each of t tied answers wins in 1/t of the orders;
    k samples without any answer are wrong. Computed from the counts alone, without drawing (self-consistency,
    arXiv:2203.11171). Raises ValueError unless 1 <= k <= len(answers).
    """
    if not 1 <= k <= len(answers):
        raise ValueError(f"k = {k} of {len(answers)} samples; expected 1 <= k <= the samples")
    counts = Counter(answer for answer in answers if answer is not None)
    silent = len(answers) - counts.total()
    won = Fraction(0)
    for winner in set(right) & set(counts):
        others = [count for answer, count in counts.items() if answer != winner]
        for votes in range(1, min(counts[winner], k) + 1):
            won += comb(counts[winner], votes) * beaten(others, silent, votes, k - votes)
    return float(won / comb(len(answers), k))


def beaten(others: Sequence[int], silent: int, votes: int, size: int) -> Fraction:
    """Σ over the ways to draw `size` samples of the other answers, none more than `votes` times, of 1 / (1 + ties)."""
    ways = {(0, 0): 1}  # (samples drawn, answers that tie) -> ways
    for count in others:
        step: dict[tuple[int, int], int] = {}
        for (drawn, ties), number in ways.items():
            for more in range(min(count, votes, size - drawn) + 1):
                key = (drawn + more, ties + (more == votes))
                step[key] = step.get(key, 0) + number * comb(count, more)
        ways = step
    return sum((Fraction(n * comb(silent, size - drawn), 1 + ties) for (drawn, ties), n in ways.items()), Fraction(0))
