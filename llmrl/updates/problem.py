"""What an update rule is given to work on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Protocol

from torch import nn


class Problem(Protocol):
    """One batch's optimization over all ranks; `llmrl.training.update` makes it.

    What `gradient` and `measure` return holds 'loss', the global mean of every statistic of the loss parts by its name, and
    its largest value as '<name>/max'. only: names of the loss parts that count; None: all.
    """

    epochs: int
    parameters: Sequence[nn.Parameter]

    def minibatches(self, epoch: int) -> Sequence[Any]:
        """The mini-batches of one pass over the batch."""

    def gradient(self, minibatch: Any, only: Collection[str] | None = None) -> dict[str, float]:
        """Add the gradient of the mini-batch's loss to every parameter's `grad`, the same on every rank."""

    def measure(self, minibatch: Any, only: Collection[str] | None = None) -> dict[str, float]:
        """What `gradient` returns, without a gradient."""

    def step(self) -> float:
        """Clip the gradient, make the optimizer's step, forget the gradient; its norm. Parts with memory observe it."""

    def zero(self) -> None:
        """Forget the gradient."""
