"""Answers to the prompts of later steps: one thread writes and judges them while the trainer trains.

Steps are begun several at a time, when nothing is left of those begun before, and all by the weights of that moment: which
weights write what hangs on the steps alone, never on who is faster.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmrl.config import Scoring
from llmrl.errors import TrainingError
from llmrl.scoring import excessive, faults
from llmrl.training.buffer import Buffer, Dealt
from llmrl.training.ranks import Ranks
from llmrl.types import Group

PATIENCE = 5.0  # seconds that the thread has to notice that the run ends

Owed = tuple[int, int, int]  # step, batch of the data, version of the weights: what a checkpoint says was begun


class GivenUp(Exception):
    """The run ends, and nobody waits for the answers any more."""


@dataclass
class Begun:
    """The answers to a step's prompts, under way or done. stored: whether the buffer has them."""

    dealt: Dealt
    groups: Future[list[Group]] = field(default_factory=Future)
    stored: bool = False


class Ahead:
    """The steps that are begun and not yet trained on.

    Until `drain` returns, the engine and the processes of the scorers belong to the thread. steps: at most so many are
    begun. version: of the weights in the engine. owed: what was begun before the checkpoint that the run goes on from.
    """

    def __init__(self, steps: int, version: int, owed: Sequence[Owed] = ()):
        self.steps, self.version, self.owed = steps, version, list(owed)
        self.begun: dict[int, Begun] = {}
        self.thread: threading.Thread | None = None
        self.ending = threading.Event()

    def begin(
        self, batches: Sequence[tuple[Dealt, list[Group] | None]], answer: Callable[[Dealt], list[Group]]
    ) -> None:
        """Have the batches answered in their order; those that bring their groups are done."""
        self.drain()
        waiting = []
        for dealt, groups in batches:
            one = self.begun[dealt.number] = Begun(dealt, stored=groups is not None)
            if groups is not None:
                one.groups.set_result(groups)
            else:
                waiting.append(one)
        if not waiting:
            return
        device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
        self.thread = threading.Thread(target=work, args=(waiting, answer, device), name="ahead", daemon=True)
        self.thread.start()

    def wait_for(self, number: int) -> Begun:
        """The step with all its answers. Raises what went wrong in the thread."""
        one = self.begun[number]
        one.groups.result()
        return one

    def store(self, owed: Sequence[Owed], buffer: Buffer, config: Scoring, ranks: Ranks) -> None:
        """Have the buffer hold the answers of those steps, those that it lacks; waits for them. All processes call it.

        What went wrong is left to who waits for the step: stored, it would go wrong again in every resumed run.
        """
        for one in [self.begun[number] for number, _, _ in owed if number in self.begun]:
            if one.stored:
                continue
            here = faults(one.groups.result()) if one.groups.exception() is None else None
            told = ranks.gather(here)
            if None in told or excessive(told, config):
                continue
            buffer.write(one.dealt, one.groups.result())
            one.stored = True

    def drain(self) -> None:
        """Wait until everything that is begun is done, well or badly: `wait_for` says how."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None

    def breathe(self) -> None:
        """For the thread, between two of its turns: raises GivenUp once the run ends."""
        if self.ending.is_set():
            raise GivenUp

    def close(self) -> None:
        """Have the thread end."""
        self.ending.set()
        if self.thread is not None:
            self.thread.join(PATIENCE)

    def listed(self) -> list[Owed]:
        """What is begun, for a checkpoint."""
        return self.owed + [(n, one.dealt.drawn, one.dealt.version) for n, one in self.begun.items()]


def work(waiting: Sequence[Begun], answer: Callable[[Dealt], list[Group]], device: int | None) -> None:
    """What the thread does. An error is that of all steps that are left."""
    if device is not None:
        torch.cuda.set_device(device)  # a thread begins with the first one
    for place, one in enumerate(waiting):
        try:
            one.groups.set_result(answer(one.dealt))
        except BaseException as error:  # noqa: BLE001 - raised by whoever waits
            for left in waiting[place:]:
                left.groups.set_exception(error)
            return


def ages(staleness: Tensor, ranks: Ranks, most: int) -> dict[str, float]:
    """Metrics of how many updates lie between the weights that wrote the rows and those trained; staleness [B].

    TrainingError for a row that is older than `most`.
    """
    total = ranks.sums({"rows": len(staleness), "updates": float(staleness.sum())})
    oldest = ranks.maximum(int(staleness.max()) if len(staleness) else 0)
    if oldest > most:
        raise TrainingError(
            f"a rollout was written by weights that are {oldest} updates old; expected {most} at most (rollout.staleness). "
            "This is a mistake in llmrl: please report it, and set rollout.staleness=0 until it is mended."
        )
    return {"rollout/staleness": total["updates"] / max(total["rows"], 1), "rollout/staleness/max": oldest}
