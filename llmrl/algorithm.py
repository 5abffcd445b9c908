"""The Algorithm value: which part at which stage. Methods are functions that return one; nothing subclasses it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from llmrl import catalog
from llmrl.batch import base_name, sources
from llmrl.errors import RecipeError, nearest

Part = Callable[..., Any]
STAGES = {  # field of Algorithm -> kind in the catalog, in the order they run
    "refine": "conditions",
    "combine": "combiners",
    "select": "selections",
    "condition": "conditions",
    "advantage": "advantages",
    "shaping": "shaping",
    "objective": "objectives",
    "regularizers": "regularizers",
}
REDUCTIONS = ("token_mean", "sequence_mean", "sequence_sum", "fixed_length", "group_mean")


@dataclass(frozen=True)
class Algorithm:
    """The choices of one method. Every field but the objective is optional.

    condition: an object with memory that writes feedback into prompts, before sampling (`refine`) and before
    training (`apply`). combine, select, shaping, objective, regularizers: run in the order given; objectives add up.
    epochs × minibatches: optimizer updates made from one batch. pairs: rows are chosen/rejected pairs.
    """

    objective: tuple[Part, ...]
    combine: tuple[Part, ...] = ()
    select: tuple[Part, ...] = ()
    condition: Any = None
    advantage: Part | None = None
    shaping: tuple[Part, ...] = ()
    regularizers: tuple[Part, ...] = ()
    reduce: str = "token_mean"
    epochs: int = 1
    minibatches: int = 1

    def __post_init__(self):
        if self.reduce not in REDUCTIONS:
            raise RecipeError(f"algorithm.reduce: no mode named {self.reduce!r}.{nearest(self.reduce, REDUCTIONS)} "
                              f"Modes: {', '.join(REDUCTIONS)}.")
