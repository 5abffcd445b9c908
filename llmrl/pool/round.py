"""Calls of scorers under way in a pool: who runs what, who is late, who has died."""

from __future__ import annotations

import contextlib
import json
import marshal
import math
import os
import selectors
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llmrl.calls import LONGEST_REASON, checked
from llmrl.errors import ScoringError
from llmrl.limits import Limits
from llmrl.pool.pool import Lost, Pool, Worker
from llmrl.pool.wire import packed_groups
from llmrl.types import Prompt, Rollout, Score

MARGIN = (
    2.0  # seconds more for a process of asynchronous calls, which keep time themselves, and to send an answer begun
)
BREATH = 0.5  # seconds that a wait lasts at most before it asks whether to go on
CHUNK = 32  # calls handed to a process at once
WORTH = 0.01  # seconds of work for which a message to a process costs little
STARTS = 3  # of the processes' parent in one round


@dataclass(frozen=True)
class Source:
    """How a process gets a scorer: by 'module:attribute', or as dill's bytes; with its options."""

    path: str
    code: bytes
    options: dict[str, Any]


@dataclass(frozen=True)
class Call:
    """One call of one scorer. seconds: wall time it may take. count: rollouts that it answers for.

    together: calls of this scorer are awaited at the same time in one process.
    """

    key: str
    source: Source
    shape: str
    limits: Limits
    seconds: float
    groups: tuple[tuple[Prompt, tuple[Rollout, ...]], ...]
    together: bool = False

    @property
    def count(self) -> int:
        return sum(len(rollouts) for _, rollouts in self.groups)


Outcome = list[Score] | str  # one score a rollout, or why there is none


class Round:
    """Calls under way. `add` and `look` wait for nobody's answer; `finish` does.

    A pool runs one round at a time: beginning another gives up the one before. ScoringError when the processes cannot be
    started at all. breathe: called every now and then by `finish`; what it raises ends the wait.
    """

    def __init__(self, pool: Pool, breathe: Callable[[], None] = lambda: None):
        self.pool, self.breathe = pool, breathe
        self.calls: list[Call] = []
        self.outcomes: list[Outcome | None] = []
        self.left = 0  # calls without an outcome
        self.waiting: dict[tuple[Limits, str], deque[int]] = {}  # of each scorer, by its key
        self.alone: set[int] = set()  # calls that go to a process by themselves: one of their chunk ended it
        self.starts = 0
        with self.guarded():
            for worker in [worker for worker in pool.staff if worker.todo]:  # of a round that was given up
                pool.dismiss(worker)

    def add(self, calls: Sequence[Call]) -> None:
        """Further calls, for the next look to hand out."""
        places = range(len(self.calls), len(self.calls) + len(calls))
        self.calls += calls
        self.outcomes += [None] * len(calls)
        self.left += len(calls)
        self.queue(places)

    def look(self) -> None:
        """Take what is answered and give idle processes work; costs next to nothing when there is nothing to do.

        Meant for a caller who has other work: what it did in between is not counted as a process's being late. Quick
        calls are kept until there are some for a message to be worth it.
        """
        worthy = any(len(queue) >= self.handful(key) for (_, key), queue in self.waiting.items() if queue)
        if worthy or any(worker.todo for worker in self.pool.staff):
            with self.guarded():
                self.listen(0.0)
                self.hand_out(waits=False)

    def finish(self) -> list[Outcome]:
        """What each call gave, in the order added. A call that raises, hangs or ends its process gives the reason.

        The round is then empty, and can be added to again.
        """
        with self.guarded():
            self.listen(0.0)  # a process that has died since the last look is given nothing
        while self.left:
            self.breathe()
            with self.guarded():
                self.hand_out(waits=True)
                deadlines = [worker.deadline for worker in self.pool.staff if worker.todo]
                if deadlines:
                    self.listen(min(BREATH, max(0.0, min(deadlines) - time.monotonic())))
        out, self.calls, self.outcomes = self.outcomes, [], []
        self.alone.clear()
        return out

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Should the processes' parent be lost, everything not answered is queued again, for new ones."""
        try:
            yield
        except Lost as error:
            self.pool.close()
            self.starts += 1
            if self.starts == STARTS:
                raise ScoringError(
                    f"the processes that scorers run in ended {STARTS} times: {error}. Is there enough memory?"
                ) from error
            self.waiting.clear()
            self.queue([place for place, outcome in enumerate(self.outcomes) if outcome is None])
        except BaseException:
            self.pool.close()  # half-answered processes are of no use to the next call
            raise

    def queue(self, places: Sequence[int]) -> None:
        for place in places:
            call = self.calls[place]
            self.waiting.setdefault((call.limits, call.key), deque()).append(place)

    def listen(self, seconds: float) -> None:
        """Read answers, waiting so long for the first; end the processes that are late."""
        for key, events in self.pool.selector.select(seconds):
            worker = key.data
            if events & selectors.EVENT_WRITE:
                self.pool.post(worker)
                if worker.todo:  # it reads only now what it is asked
                    self.wait_for(worker)
            if events & selectors.EVENT_READ:
                self.take(worker)
        now = time.monotonic()
        for worker in [worker for worker in self.pool.staff if worker.todo and worker.deadline <= now]:
            allowed = self.pool.learning if worker.learning else self.calls[worker.todo[0]].seconds
            self.dismiss(worker, f"no answer within {allowed:g} s")

    def hand_out(self, waits: bool) -> None:
        """Give processes that have time the next calls, starting processes while there are calls for them.

        waits: whether the caller waits for the calls. It then starts processes whatever that takes, and hands out little
        at a time, so that all end together. One who does not comes by too seldom for that.
        """
        for (limits, key), queue in self.waiting.items():
            most, least = min(limits.workers or self.pool.workers, self.pool.workers), self.handful(key)
            while queue and (waits or len(queue) >= least) and (worker := self.taker(limits, queue[0], most, waits)):
                self.give(worker, self.chunk(queue, least, 4 * most if waits else most))

    def handful(self, key: str) -> int:
        """How many calls of a scorer are worth a message."""
        return math.ceil(WORTH / self.pool.pace.get(key, WORTH))

    def taker(self, limits: Limits, place: int, most: int, waits: bool) -> Worker | None:
        """A process for the call: one at calls that it is awaited together with, else an idle one, else a new one."""
        mine = [worker for worker in self.pool.staff if worker.limits == limits]
        call = self.calls[place]
        if call.together and place not in self.alone:
            for worker in mine:
                if worker.todo and self.calls[worker.todo[0]].key == call.key and worker.todo[0] not in self.alone:
                    return worker
        idle = next((worker for worker in mine if not worker.todo), None)
        if idle is not None or len(mine) >= most or not (waits or self.pool.ready()):
            return idle
        return self.pool.hire(limits)

    def chunk(self, queue: deque[int], least: int, parts: int) -> list[int]:
        """The next calls of one scorer, few enough for every process to get some, unless that is not worth a message."""
        chunk = [queue.popleft()]
        if chunk[0] in self.alone:
            return chunk
        whole = len(queue) + 1
        most = whole if self.calls[chunk[0]].together else min(CHUNK, max(least, -(-whole // parts)))
        while queue and len(chunk) < most and queue[0] not in self.alone:
            chunk.append(queue.popleft())
        return chunk

    def give(self, worker: Worker, chunk: list[int]) -> None:
        """Send calls of one scorer to a process; what cannot be sent has its outcome at once."""
        call, jobs = self.calls[chunk[0]], []
        for place in chunk:
            try:
                jobs.append((place, packed_groups(self.calls[place].groups)))
            except (TypeError, ValueError, RecursionError) as error:
                self.settle(place, f"{type(error).__name__}: {error}")
        if not jobs:
            return
        idle = not worker.todo
        worker.todo += [place for place, _ in jobs]
        if call.key not in worker.known:
            worker.known.add(call.key)
            worker.learning = True
            source = call.source
            self.pool.post(worker, marshal.dumps(("learn", call.key, source.path, source.code, source.options)))
        self.pool.post(worker, marshal.dumps(("run", call.key, call.shape, call.seconds, jobs)))
        if idle:  # one at work still owes an earlier answer by the time that is set
            self.wait_for(worker)

    def wait_for(self, worker: Worker) -> None:
        """Set the time by which the next answer has to be there."""
        call = self.calls[worker.todo[0]]
        own_clock = MARGIN if call.together else 0.0
        worker.deadline = time.monotonic() + (self.pool.learning if worker.learning else call.seconds + own_clock)

    def take(self, worker: Worker) -> None:
        """Read what a process has sent."""
        reason, between = None, not worker.inbox.data
        try:
            received = worker.connection.recv(1 << 20)
            for message in worker.inbox.feed(received):
                self.answered(worker, json.loads(message))
        except BlockingIOError:
            return
        except OSError:
            received = b""
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError, OverflowError) as error:
            received, reason = b"", f"sent no valid answer ({type(error).__name__})"
        if not received:
            self.dismiss(worker, reason)
        elif between and worker.inbox.data:  # it can send the rest of a long answer only now that it is being read
            worker.deadline = max(worker.deadline, time.monotonic() + MARGIN)

    def answered(self, worker: Worker, message: dict[str, Any]) -> None:
        """Note an outcome, or that the process now knows the scorer."""
        place = message["id"]
        if place is None:
            worker.learning = False
        else:
            at = worker.todo.index(place)
            self.settle(place, outcome_of(message, self.calls[place].count))
            del worker.todo[at]
            if "seconds" in message:
                key, seconds = self.calls[place].key, max(1e-6, float(message["seconds"]))
                self.pool.pace[key] = 0.9 * self.pool.pace.get(key, seconds) + 0.1 * seconds
        if worker.todo:
            self.wait_for(worker)

    def settle(self, place: int, outcome: Outcome) -> None:
        self.outcomes[place] = outcome
        self.left -= 1

    def dismiss(self, worker: Worker, reason: str | None) -> None:
        """End a process; the call it was at gets the reason, the others go back into the queue."""
        status = self.pool.dismiss(worker)
        left = worker.todo
        if not left:
            return
        call = self.calls[left[0]]
        queue = self.waiting[worker.limits, call.key]
        if call.together and len(left) > 1 and not worker.learning:
            self.alone.update(left)  # any of them may have done it
        else:
            spent = [*left, *queue] if worker.learning else left[:1]
            for place in spent:  # a scorer that cannot be imported is not tried again for each of its calls
                self.settle(place, reason or death(status))
            if worker.learning:
                queue.clear()
            left = [place for place in left if place not in spent]
        queue.extendleft(reversed(left))


def outcome_of(message: dict[str, Any], count: int) -> Outcome:
    """The scores of an answer, checked again on this side, or its error."""
    if message.get("error") is not None:
        return str(message["error"])[:LONGEST_REASON]
    scores = [checked(score_of(fields)) for fields in message["scores"]]
    return scores if len(scores) == count else f"{len(scores)} scores for {count} rollouts"


def score_of(fields: dict[str, Any]) -> Score:
    """A Score out of JSON. TypeError where a field has another type."""
    feedback, evidence, steps = fields["feedback"], fields["evidence"], fields["steps"]
    if not (feedback is None or isinstance(feedback, str)) or not isinstance(evidence, dict):
        raise TypeError("feedback or evidence of another type")
    return Score(fields["value"], feedback, evidence, fields["error"], tuple((end, value) for end, value in steps))


def death(status: int) -> str:
    """A wait status in words."""
    if os.WIFSIGNALED(status):
        return f"its process was ended by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"its process ended with exit status {os.waitstatus_to_exitcode(status)}"
