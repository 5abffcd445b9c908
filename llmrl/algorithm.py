"""The Algorithm value: which part at which stage. Methods are functions that return one; nothing subclasses it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from llmrl import catalog
from llmrl.config import Natural, Positive
from llmrl.errors import RecipeError, nearest

Part = Callable[..., Any]
STAGES = {  # field of Algorithm -> kind in the catalog, in the order they run
    "sampling": "sampling",
    "combine": "combiners",
    "select": "selections",
    "condition": "conditions",
    "advantage": "advantages",
    "shaping": "shaping",
    "prepare": "shaping",
    "objective": "objectives",
    "regularizers": "regularizers",
    "perturb": "perturbations",
    "update": "updates",
    "diagnostics": "diagnostics",
}
SINGLE = ("sampling", "condition", "advantage", "perturb", "update")  # every other stage is a tuple of parts
WITHOUT_ARRAYS = ("sampling", "condition", "perturb", "update")  # stages whose parts read something else
BEFORE_UPDATE = ("combine", "select", "advantage", "shaping", "diagnostics")
REDUCTIONS = ("token_mean", "sequence_mean", "sequence_sum", "fixed_length", "group_mean")


@dataclass(frozen=True)
class Before:
    """Rollouts of every prompt by the policy that the stage begins with, ahead of training: `anchor_rewards`.

    num_samples: rollouts of each. refresh_every: steps after which they are made anew by the policy of that time; 0: never.
    """

    num_samples: Positive = 8
    refresh_every: Natural = 0
    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - read by pydantic, which would drop a misspelt key


@dataclass(frozen=True)
class Extra:
    """A second batch in the same update, with its own counts.

    source: extra_data, the recipe's section of that name; stored, the completions that came with this step's prompts;
    reference, right answers of the first policy to prompts that a selection left out. gate: a part like an advantage, run
    on the rollouts; its value for a prompt becomes `advantages` of the prompt's extra rows, and sequences are averaged
    over all prompts of the mini-batch, with a row or without.
    """

    objective: tuple[Part, ...]
    source: Literal["extra_data", "stored", "reference"] = "extra_data"
    coefficient: float = 1.0
    reduce: str = "token_mean"
    gate: Part | None = None


FIELDS = {"reduce": Literal[REDUCTIONS], "epochs": Positive, "minibatches": Positive, "before": Before | None}


@dataclass(frozen=True)
class Algorithm:
    """The choices of one method. Every field but the objective is optional.

    before: reference rollouts ahead of training. sampling: the temperature of each token. combine, select, shaping,
    objective, regularizers: run in the order given; objectives add up. condition: an object with memory that writes
    feedback into prompts, before sampling (`refine`) and before training (`apply`). prepare: parts that look at a whole
    optimizer mini-batch before its update. extra: further batches in the same update. perturb: noise inside the model
    while it trains. update: the rule that makes the steps; None: epochs × minibatches of the optimizer. diagnostics: what
    else is logged.
    """

    objective: tuple[Part, ...]
    before: Before | None = None
    sampling: Any = None
    combine: tuple[Part, ...] = ()
    select: tuple[Part, ...] = ()
    condition: Any = None
    advantage: Part | None = None
    shaping: tuple[Part, ...] = ()
    prepare: tuple[Part, ...] = ()
    regularizers: tuple[Part, ...] = ()
    extra: tuple[Extra, ...] = ()
    perturb: Any = None
    update: Any = None
    diagnostics: tuple[Part, ...] = ()
    reduce: str = "token_mean"
    epochs: int = 1
    minibatches: int = 1

    def __post_init__(self):
        for mode in (self.reduce, *(extra.reduce for extra in self.extra)):
            if mode not in REDUCTIONS:
                hint, modes = nearest(mode, REDUCTIONS), ", ".join(REDUCTIONS)
                raise RecipeError(f"algorithm.reduce: no mode named {mode!r}.{hint} Modes: {modes}.")

    def at(self, stage: str) -> tuple[Part, ...]:
        """The parts of one stage, in the order they run."""
        held = getattr(self, stage)
        return held if stage not in SINGLE else () if held is None else (held,)

    @property
    def losses(self) -> tuple[Part, ...]:
        """What adds up to the loss on the rollouts."""
        return (*self.objective, *self.regularizers)

    @property
    def single_update(self) -> bool:
        """Whether the policy is the one that the updates began with whenever the loss is taken: no step before, no noise."""
        return self.update is None and self.perturb is None and self.epochs * self.minibatches == 1

    def remembering(self) -> dict[str, Part]:
        """Parts with memory by the key of their state, 'stage.name'; the condition's is kept apart."""
        held = [(stage, part) for stage in STAGES if stage != "condition" for part in self.at(stage)]
        held += [("extra", part) for extra in self.extra for part in extra.objective]
        return {f"{stage}.{catalog.name_of(part)}": part for stage, part in held if hasattr(part, "init")}
