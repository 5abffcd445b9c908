"""How rows are cut into what goes through the model at once. The result of an update does not depend on it."""

from __future__ import annotations

from collections.abc import Sequence


def split(
    units: Sequence[Sequence[int]],
    contexts: Sequence[Sequence[int]],
    responses: Sequence[int],
    budget: int,
    shared: bool,
) -> list[list[int]]:
    """Rows of each micro-batch: at most `budget` tokens forwarded in each, padding counted; a larger unit stands alone.

    units: rows that must stay together (one row, or the two of a pair). contexts: token ids a row; responses: token
    counts a row. shared: whether a context that rows share is forwarded once; rows of one context are then neighbours,
    else rows of like length.
    """
    places: dict[tuple[int, ...], int] = {}
    context_of = [places.setdefault(tuple(c), len(places)) for c in contexts]

    def order(unit: Sequence[int]) -> int:
        return context_of[unit[0]] if shared else max(len(contexts[i]) + responses[i] for i in unit)

    out: list[list[int]] = []
    seen: set[int] = set()
    longest = total = 0
    for unit in sorted(units, key=order):
        here = {context_of[i] for i in unit}
        if shared:
            widest = max(longest, *(len(contexts[i]) for i in unit))
            length = total + sum(responses[i] for i in unit)
            cost = len(seen | here) * widest + length
        else:
            widest = max(longest, *(len(contexts[i]) + responses[i] for i in unit))
            length = 0
            cost = (len(out[-1]) if out else 0) * widest + len(unit) * widest
        if out and cost <= budget:
            out[-1].extend(unit)
            seen, longest, total = seen | here, widest, length
        else:
            out.append(list(unit))
            seen, total = here, sum(responses[i] for i in unit)
            longest = max(len(contexts[i]) + (0 if shared else responses[i]) for i in unit)
    return out
