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
    """Rows of each micro-batch: at most `budget` tokens forwarded in each; a larger unit stands alone.

    units: rows that must stay together (one row, or the two of a pair). contexts: token ids a row; responses: token
    counts a row. shared: a context that rows share is forwarded once, and nothing is padded; rows of one context are then
    neighbours. Else rows of like length are, and their padding counts.
    """
    places: dict[tuple[int, ...], int] = {}
    context_of = [places.setdefault(tuple(c), len(places)) for c in contexts]

    def order(unit: Sequence[int]) -> int:
        return context_of[unit[0]] if shared else max(len(contexts[i]) + responses[i] for i in unit)

    out: list[list[int]] = []
    seen: set[int] = set()  # contexts of the last micro-batch
    total = longest = 0  # tokens in it, and of its longest row
    for unit in sorted(units, key=order):
        here = {context_of[i]: len(contexts[i]) for i in unit}
        own = sum(responses[i] for i in unit)
        widest = max(longest, *(len(contexts[i]) + responses[i] for i in unit))
        if shared:
            cost = total + own + sum(length for context, length in here.items() if context not in seen)
        else:
            cost = (len(out[-1] if out else ()) + len(unit)) * widest
        if out and cost <= budget:
            out[-1].extend(unit)
            seen, total, longest = seen | here.keys(), cost, widest
        else:
            out.append(list(unit))
            seen, total = set(here), own + sum(here.values())
            longest = max(len(contexts[i]) + responses[i] for i in unit)
    return out
