"""The trainer's side of the processes that scorers run in: starting them, ending them, what goes to and fro."""

from __future__ import annotations

import contextlib
import json
import marshal
import os
import selectors
import socket
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

from llmrl import confinement
from llmrl.limits import Limits
from llmrl.pool.wire import HEADER, Inbox

# what makes a library think that it is one of a run's processes, and wait for the others; RANK alone does not
DISTRIBUTED = ("WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_")


class Lost(Exception):
    """The processes' parent is gone."""


@dataclass(eq=False)
class Worker:
    """A process of the pool and what it has been given. `todo`: calls not answered yet, in the order they run.

    outbox: what its connection has not taken yet; nobody waits for a process that is too busy to read.
    """

    pid: int
    connection: socket.socket
    limits: Limits
    inbox: Inbox = field(default_factory=Inbox)
    outbox: bytearray = field(default_factory=bytearray)
    known: set[str] = field(default_factory=set)
    learning: bool = False
    todo: list[int] = field(default_factory=list)
    deadline: float = 0.0


class Pool:
    """Processes for scorers, forked from one that has imported what they need; started when first used.

    workers: processes at once for scorers of the same limits; None: the CPUs this process may use, at most 8. A context
    manager; `close` ends every process.
    """

    learning = 300.0  # seconds that importing a scorer, with whatever it needs, may take

    def __init__(self, workers: int | None = None):
        self.workers = workers or min(len(os.sched_getaffinity(0)), 8)
        self.staff: list[Worker] = []
        self.selector = selectors.DefaultSelector()
        self.zygote: subprocess.Popen | None = None
        self.control: socket.socket | None = None
        self.preloaded: set[str] = set()
        self.unanswered = 0
        self.replaced = 0  # processes that hung or died
        self.pace: dict[str, float] = {}  # seconds of a call, by scorer: a running mean

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def start(self, modules: Sequence[str] = ()) -> None:
        """Have the modules imported, without waiting for it."""
        new = [m for m in dict.fromkeys(modules) if m not in self.preloaded]
        if new:
            with contextlib.suppress(Lost):  # whoever needs a process next finds that out, and starts anew
                self._send("preload", (new, self.learning))
                self.preloaded.update(new)

    def ready(self) -> bool:
        """Whether a new process would be there at once: its parent is up and has imported what it was told to."""
        if self.zygote is None:
            self._send("preload", ([], self.learning))
        with contextlib.suppress(BlockingIOError):
            while self.unanswered:
                self._answer(socket.MSG_DONTWAIT)
        return not self.unanswered

    def close(self) -> None:
        """End every process of the pool."""
        for worker in self.staff:
            self._part(worker)
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
        ours.setblocking(False)
        worker = Worker(pid, ours, limits)
        self.staff.append(worker)
        self.selector.register(ours, selectors.EVENT_READ, worker)
        return worker

    def dismiss(self, worker: Worker) -> int:
        """End a process; its wait status."""
        self._part(worker)
        self.staff.remove(worker)
        self.replaced += 1
        return self._request("end", worker.pid)

    def post(self, worker: Worker, message: bytes = b"") -> None:
        """Send a process the message after what it has not taken yet, as far as it takes it now."""
        if message:
            worker.outbox += HEADER.pack(len(message)) + message
        with contextlib.suppress(OSError):  # full; one that has died shows at the next look at its connection
            while worker.outbox:
                del worker.outbox[: worker.connection.send(worker.outbox)]
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.outbox else 0)
        if self.selector.get_key(worker.connection).events != wanted:
            self.selector.modify(worker.connection, wanted, worker)

    def _part(self, worker: Worker) -> None:
        self.selector.unregister(worker.connection)
        worker.connection.close()

    def _request(self, verb: str, argument: Any, descriptor: int | None = None) -> Any:
        self._send(verb, argument, descriptor)
        while True:
            answer = self._answer()
            if not self.unanswered:
                return json.loads(answer)

    def _answer(self, flags: int = 0) -> bytes:
        try:
            answer = self.control.recv(1 << 16, flags)
        except BlockingIOError:
            raise
        except OSError as error:
            raise Lost(str(error)) from error
        if not answer:
            raise Lost(f"exit status {self.zygote.poll()}")
        self.unanswered -= 1
        return answer

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
