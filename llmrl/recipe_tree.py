"""Trees: plain values that remember where each key was written, and how one is laid over another.

Keys of a tree are tuples: ('training', 'steps'). An item of a list goes by its `name` where it has one, else by its
index: ('stages', 'sft', 'training', 'steps').
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from llmrl.errors import RecipeError, nearest

Keys = tuple[str, ...]


class Mark(NamedTuple):
    """Where a key was written. `key` is the dotted name it had there."""

    file: str
    line: int
    column: int
    key: str

    @property
    def origin(self) -> str:
        """'recipes/dapo.yaml:3', or 'override'."""
        return f"{self.file}:{self.line}" if self.line else self.file

    @property
    def place(self) -> str:
        """'recipes/dapo.yaml:3:5', or 'override'."""
        return f"{self.origin}:{self.column}" if self.line else self.file


@dataclass(frozen=True)
class Tree:
    """Plain values, and the mark of every key below them."""

    values: dict[str, Any] = field(default_factory=dict)
    marks: dict[Keys, Mark] = field(default_factory=dict)

    def below(self, *keys: str) -> Tree:
        """The mapping at `keys` as a tree of its own; empty when there is none."""
        found: Any = self.values
        for key in keys:
            found = dict(items_of(found)).get(key)
        marks = {k[len(keys) :]: m for k, m in self.marks.items() if k[: len(keys)] == keys and len(k) > len(keys)}
        return Tree(found, marks) if isinstance(found, dict) else Tree()

    def only(self, names: Sequence[str]) -> Tree:
        """The sections named."""
        return Tree(
            {k: v for k, v in self.values.items() if k in names}, {k: m for k, m in self.marks.items() if k[0] in names}
        )


def item_key(index: int, item: Any) -> str:
    """What an item of a list is called in keys: its name, else its index."""
    name = item.get("name") if isinstance(item, dict) else None
    return name if isinstance(name, str) else str(index)


def items_of(value: Any) -> list[tuple[str, Any]]:
    """(key, value) below a mapping or a list; nothing below anything else."""
    if isinstance(value, dict):
        return list(value.items())
    return [(item_key(i, item), item) for i, item in enumerate(value)] if isinstance(value, list) else []


def overlay(under: Tree, over: Tree) -> Tree:
    """`over` laid over `under`: mappings merge, everything else replaces.

    A mapping whose `name` differs from the one below is another thing and replaces it whole. A mapping over a list
    of named items is laid over the items by name; RecipeError when one is not there.
    """
    replaced: list[Keys] = []

    def merged(low: Any, high: Any, at: Keys) -> Any:
        if isinstance(low, list) and isinstance(high, dict) and low and all(item_key(-1, item) != "-1" for item in low):
            names = [item["name"] for item in low]
            for name in set(high) - set(names):
                place, hint = over.marks[(*at, name)].place, nearest(name, names)
                known = ", ".join(names)
                raise RecipeError(f"{place}: {'.'.join(at)} has no item named {name!r}.{hint} Items: {known}.")
            return [merged(item, high[n], (*at, n)) if n in high else item for n, item in zip(names, low, strict=True)]
        if not isinstance(low, dict) or not isinstance(high, dict) or (at and _renamed(low, high)):
            replaced.append(at)
            return high
        return low | {k: merged(low[k], v, (*at, k)) if k in low else v for k, v in high.items()}

    values = merged(under.values, over.values, ())
    kept = {k: m for k, m in under.marks.items() if not any(k[: len(r)] == r for r in replaced)}
    return Tree(values, kept | over.marks)


def _renamed(low: dict[str, Any], high: dict[str, Any]) -> bool:
    return "name" in low and "name" in high and low["name"] != high["name"]
