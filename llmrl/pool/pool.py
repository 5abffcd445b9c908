"""The trainer's side of the pool: who runs what, who is late, who has died."""

from __future__ import annotations

import contextlib
import json
import marshal
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

from llmrl import confinement
from llmrl.calls import LONGEST_REASON, checked
from llmrl.errors import ScoringError
from llmrl.limits import Limits
from llmrl.pool.wire import Inbox, packed_groups, send
from llmrl.types import Prompt, Rollout, Score

LEARNING = 300.0  # seconds that importing a scorer, with whatever it needs, may take
MARGIN = 2.0  # seconds more before a process of asynchronous calls is ended: those keep time themselves
CHUNK = 32  # calls handed to a process at once
# what makes a library think that it is one of a run's processes, and wait for the others; RANK alone does not
DISTRIBUTED = ("WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_")
STARTS = 3  # of the processes' parent in one round of scoring


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


class Lost(Exception):
    """The processes' parent is gone."""


@dataclass(eq=False)
class Worker:
    """A process of the pool and what it has been given. `todo`: calls not answered yet, in the order they run."""

    pid: int
    connection: socket.socket
    limits: Limits
    inbox: Inbox = field(default_factory=Inbox)
    known: set[str] = field(default_factory=set)
    learning: bool = False
    todo: list[int] = field(default_factory=list)
    deadline: float = 0.0


class Pool:
    """Processes for scorers, forked from one that has imported what they need; started when first used.

    workers: processes at once for scorers of the same limits; None: the CPUs this process may use, at most 8. A context
    manager; `close` ends every process.
    """

    def __init__(self, workers: int | None = None):
        self.workers = workers or min(len(os.sched_getaffinity(0)), 8)
        self.staff: list[Worker] = []
        self.zygote: subprocess.Popen | None = None
        self.control: socket.socket | None = None
        self.preloaded: set[str] = set()
        self.unanswered = 0
        self.replaced = 0  # processes that hung or died

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def start(self, modules: Sequence[str] = ()) -> None:
        """Have the modules imported, without waiting for it."""
        new = [m for m in dict.fromkeys(modules) if m not in self.preloaded]
        if new:
            with contextlib.suppress(Lost):  # whoever needs a process next finds that out, and starts anew
                self._send("preload", (new, LEARNING))
                self.preloaded.update(new)

    def judge(self, calls: Sequence[Call]) -> list[Outcome]:
        """What each call gave, in their order. A call that raises, hangs or ends its process gives the reason.

        Raises ScoringError when the processes cannot be started at all.
        """
        outcomes: list[Outcome | None] = [None] * len(calls)
        for _ in range(STARTS):
            try:
                Round(self, calls, outcomes).run()
                return outcomes
            except Lost as error:
                reason = str(error)
                self.close()
            except BaseException:
                self.close()  # half-answered processes are of no use to the next call
                raise
        raise ScoringError(f"the processes that scorers run in ended {STARTS} times: {reason}. Is there enough memory?")

    def close(self) -> None:
        """End every process of the pool."""
        for worker in self.staff:
            worker.connection.close()
        self.staff.clear()
        if self.control is not None:
            self.control.close()
            self.control = None
        if self.zygote is not None:
            try:
                self.zygote.wait(10)
            except subprocess.TimeoutExpired:
                self.zygote.kill()
                self.zygote.wait()
            self.zygote = None
        self.preloaded.clear()

    def hire(self, limits: Limits) -> Worker:
        """A new process."""
        if limits.confined and (missing := confinement.available()):
            warnings.warn(f"scorers run without confinement, which needs {missing}.", stacklevel=2)
        ours, theirs = socket.socketpair()
        with theirs:
            pid = self._request("fork", astuple(limits), theirs.fileno())
        ours.settimeout(LEARNING)
        worker = Worker(pid, ours, limits)
        self.staff.append(worker)
        return worker

    def dismiss(self, worker: Worker) -> int:
        """End a process; its wait status."""
        worker.connection.close()
        self.staff.remove(worker)
        self.replaced += 1
        return self._request("end", worker.pid)

    def _request(self, verb: str, argument: Any, descriptor: int | None = None) -> Any:
        self._send(verb, argument, descriptor)
        while True:
            try:
                answer = self.control.recv(1 << 16)
            except OSError as error:
                raise Lost(str(error)) from error
            if not answer:
                raise Lost(f"exit status {self.zygote.poll()}")
            self.unanswered -= 1
            if not self.unanswered:
                return json.loads(answer)

    def _send(self, verb: str, argument: Any, descriptor: int | None = None) -> None:
        if self.zygote is None:
            self._launch()
        try:
            socket.send_fds(self.control, [marshal.dumps((verb, argument))], [] if descriptor is None else [descriptor])
        except OSError as error:
            raise Lost(str(error)) from error
        self.unanswered += 1

    def _launch(self) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "llmrl.pool.zygote", str(theirs.fileno())]
            path = os.pathsep.join(p or os.getcwd() for p in sys.path)
            self.zygote = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is the trainer's to handle
                env={k: v for k, v in os.environ.items() if not k.startswith(DISTRIBUTED)} | {"PYTHONPATH": path},
            )
        self.unanswered = 0


class Round:
    """The calls of one `Pool.judge` under way."""

    def __init__(self, pool: Pool, calls: Sequence[Call], outcomes: list[Outcome | None]):
        self.pool, self.calls, self.outcomes = pool, calls, outcomes
        self.waiting: dict[Limits, deque[int]] = {}
        for place, call in enumerate(calls):
            if outcomes[place] is None:
                self.waiting.setdefault(call.limits, deque()).append(place)
        self.alone: set[int] = set()  # calls that go to a process by themselves: one of their chunk ended it
        self.selector = selectors.DefaultSelector()

    def run(self) -> None:
        """Until every call has its outcome."""
        with self.selector:
            for worker in self.pool.staff:
                self.selector.register(worker.connection, selectors.EVENT_READ, worker)
            for dead, _ in self.selector.select(0):  # between two rounds a living process has nothing to say
                self.take(dead.data)
            while any(outcome is None for outcome in self.outcomes):
                self.hand_out()
                busy = [worker for worker in self.pool.staff if worker.todo]
                if not busy:
                    continue
                patience = min(worker.deadline for worker in busy) - time.monotonic()
                for ready, _ in self.selector.select(max(0.0, patience)):
                    self.take(ready.data)
                for worker in [w for w in busy if w in self.pool.staff and w.todo and w.deadline <= time.monotonic()]:
                    seconds = LEARNING if worker.learning else self.calls[worker.todo[0]].seconds
                    self.dismiss(worker, f"no answer within {seconds:g} s")

    def hand_out(self) -> None:
        """Give idle processes the next calls, starting processes while there are calls for them."""
        for limits, queue in self.waiting.items():
            most = min(limits.workers or self.pool.workers, self.pool.workers)
            while queue:
                mine = [worker for worker in self.pool.staff if worker.limits == limits]
                worker = next((w for w in mine if not w.todo), None)
                if worker is None and len(mine) >= most:
                    break
                if worker is None:
                    worker = self.pool.hire(limits)
                    self.selector.register(worker.connection, selectors.EVENT_READ, worker)
                self.give(worker, self.chunk(queue, most))

    def chunk(self, queue: deque[int], processes: int) -> list[int]:
        """The next calls of one scorer, few enough for every process to get some."""
        chunk = [queue.popleft()]
        call = self.calls[chunk[0]]
        if chunk[0] in self.alone:
            return chunk
        most = len(queue) + 1 if call.together else min(CHUNK, -(-(len(queue) + 1) // (4 * processes)))
        while queue and len(chunk) < most and self.calls[queue[0]].key == call.key and queue[0] not in self.alone:
            chunk.append(queue.popleft())
        return chunk

    def give(self, worker: Worker, chunk: list[int]) -> None:
        """Send calls of one scorer to an idle process; what cannot be sent has its outcome at once."""
        call, jobs = self.calls[chunk[0]], []
        for place in chunk:
            try:
                jobs.append((place, packed_groups(self.calls[place].groups)))
            except (TypeError, ValueError, RecursionError) as error:
                self.outcomes[place] = f"{type(error).__name__}: {error}"
        if not jobs:
            return
        worker.todo = [place for place, _ in jobs]
        with contextlib.suppress(OSError):  # one that has died shows at the next look at its connection
            if call.key not in worker.known:
                worker.known.add(call.key)
                worker.learning = True
                source = call.source
                send(worker.connection, marshal.dumps(("learn", call.key, source.path, source.code, source.options)))
            send(worker.connection, marshal.dumps(("run", call.key, call.shape, call.seconds, jobs)))
        self.wait_for(worker)

    def wait_for(self, worker: Worker) -> None:
        """Set the time by which the next answer has to be there."""
        call = self.calls[worker.todo[0]]
        own_clock = MARGIN if call.together else 0.0
        worker.deadline = time.monotonic() + (LEARNING if worker.learning else call.seconds + own_clock)

    def take(self, worker: Worker) -> None:
        """Read what a process has sent."""
        reason = None
        try:
            received = worker.connection.recv(1 << 20)
            for message in worker.inbox.feed(received):
                self.answered(worker, json.loads(message))
        except OSError:
            received = b""
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            received, reason = b"", f"sent no valid answer ({type(error).__name__})"
        if not received:
            self.dismiss(worker, reason)

    def answered(self, worker: Worker, message: dict[str, Any]) -> None:
        """Note an outcome, or that the process now knows the scorer."""
        place = message["id"]
        if place is None:
            worker.learning = False
        else:
            at = worker.todo.index(place)
            self.outcomes[place] = outcome_of(message, self.calls[place].count)
            del worker.todo[at]
        if worker.todo:
            self.wait_for(worker)

    def dismiss(self, worker: Worker, reason: str | None) -> None:
        """End a process; the call it was at gets the reason, the others go back into the queue."""
        self.selector.unregister(worker.connection)
        status = self.pool.dismiss(worker)
        left = worker.todo
        if not left:
            return
        if self.calls[left[0]].together and len(left) > 1 and not worker.learning:
            self.alone.update(left)  # any of them may have done it
        else:
            key, queue = self.calls[left[0]].key, self.waiting[worker.limits]
            spent = {p for p in (*left, *queue) if self.calls[p].key == key} if worker.learning else {left[0]}
            for place in spent:  # a scorer that cannot be imported is not tried again for each of its calls
                self.outcomes[place] = reason or death(status)
                if place in queue:
                    queue.remove(place)
            left = [place for place in left if place not in spent]
        self.waiting[worker.limits].extendleft(reversed(left))


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
