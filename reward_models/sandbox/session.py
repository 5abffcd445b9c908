"""One process in a sandbox: starting it, talking with it under a deadline, ending it."""

from __future__ import annotations

import contextlib
import marshal
import math
import os
import secrets
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from reward_models.sandbox import tiers
from reward_models.sandbox.calls import Call
from reward_models.sandbox.errors import Fault, InfrastructureError, Late
from reward_models.sandbox.wire import decode

STARTING = 20.0  # seconds until the walls stand; on an idle machine 0.02
PAUSES = (0.05, 0.2, 0.8)  # before each new attempt at starting
ANSWER = 4_100_000  # bytes of one answer, a little more than what an honest driver sends
CHUNK = 1 << 16
THREADS, FILES = 64, 64


@dataclass(frozen=True)
class Limits:
    """seconds: wall time from the first line of the code on. memory_gb: address space. output: bytes kept of each
    stream; the rest is read and dropped."""

    seconds: float = 10.0
    memory_gb: float = 1.0
    output: int = 1 << 20

    def resources(self) -> dict[str, int]:
        """The limits that the process takes on, by the names of the resource module."""
        return {
            "RLIMIT_AS": int(self.memory_gb * 2**30),
            "RLIMIT_CPU": math.ceil(self.seconds) + 1,
            "RLIMIT_FSIZE": 0,
            "RLIMIT_NOFILE": FILES,
            "RLIMIT_NPROC": THREADS,
            "RLIMIT_CORE": 0,
        }


@dataclass(frozen=True)
class Ended:
    """How a program ended: its exit code, negative for a signal, what it wrote, and whether its output was cut."""

    code: int
    output: str
    error: str
    cut: bool


class Session:
    """A driver that has told it is ready. Use as a context: leaving it kills whatever still runs.

    part: 'candidate', 'tests' or 'program'; source: what a program runs. stdin: what a program reads.
    Raises InfrastructureError where the walls do not stand after several attempts.
    """

    def __init__(self, part: str, limits: Limits, tier: str, *, source: str = "", stdin: bytes = b""):
        self.limits, self.tier = limits, tier
        setup = {"part": part, "source": source, "limits": limits.resources(), "parent": os.getpid()}
        setup |= {"confinement": tiers.python().confinement if tier == "landlock" else b"", "read": tiers.readable()}
        if tier == "landlock" and os.geteuid() != 0:
            del setup["limits"]["RLIMIT_NPROC"]  # it would count every process of this user; memory bounds the threads
        for pause in (*PAUSES, None):
            try:
                return self.begin(setup, stdin)
            except (Fault, OSError, ValueError) as error:
                if pause is None:
                    said = self.streams.get("stderr", b"").decode(errors="replace").strip()[-300:]
                    raise InfrastructureError(
                        f"sandbox ({tier}): did not start in {len(PAUSES) + 1} attempts: {said or error}. Look for "
                        "limits on processes or memory, or set backend."
                    ) from error
                time.sleep(pause)

    def begin(self, setup: dict[str, Any], stdin: bytes) -> None:
        """Start the process and wait until its driver is ready."""
        self.streams: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray(), "answers": bytearray()}
        self.cut = False
        self.process: subprocess.Popen | None = None
        theirs, self.requests = os.pipe2(os.O_CLOEXEC)
        self.answers, answers = os.pipe2(os.O_CLOEXEC)
        stdin_file = os.memfd_create("stdin")
        try:
            os.set_blocking(self.requests, False)
            with open(stdin_file, "wb", closefd=False) as file:
                file.write(stdin)
            os.lseek(stdin_file, 0, os.SEEK_SET)
            self.process = tiers.start(
                self.tier, (theirs, answers), stdin=stdin_file, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            for descriptor in (theirs, answers):
                os.close(descriptor)
            theirs = answers = -1
            self.open = {
                self.process.stdout.fileno(): "stdout",
                self.process.stderr.fileno(): "stderr",
                self.answers: "answers",
            }
            nonce = secrets.token_hex(8)
            self.deadline = time.monotonic() + STARTING
            said, kind, _ = self.exchange(setup | {"nonce": nonce}, first=tiers.python().driver)
            if (said, kind) != (nonce, "ready"):
                raise Fault(f"unexpected answer {kind!r}")
        except BaseException:
            self.close()
            raise
        finally:
            for descriptor in (theirs, answers, stdin_file):
                if descriptor >= 0:
                    os.close(descriptor)
        self.started = time.monotonic()
        self.deadline = self.started + self.limits.seconds

    def ask(self, kind: str, *rest: Any) -> tuple[str, Any]:
        """(kind, value) of the answer to one request, under a nonce of its own. Raises Fault."""
        nonce = secrets.token_hex(8)
        said, answer, value = self.exchange((nonce, kind, *rest))
        if said != nonce:
            raise Fault("answered a question that was not asked")
        return answer, value

    def test(self, *message: Any) -> tuple[str, Any]:
        """Begin with the test code: (kind, value) of its first call or of its verdict. Raises Fault."""
        self.nonce = secrets.token_hex(8)
        return self.resume((self.nonce, *message))

    def resume(self, message: Any) -> tuple[str, Any]:
        """Give the tests an answer to their call: the next call, or the verdict. Raises Fault."""
        said, kind, value = self.exchange(message)
        if said != self.nonce:
            raise Fault("answered a question that was not asked")
        return kind, value

    def ask_all(self, calls: Sequence[Call]) -> Iterator[tuple[str, Any]]:
        """The answers, each asked for when it is wanted."""
        return (self.ask(*call.request) for call in calls)

    def exchange(self, message: Any, first: bytes = b"") -> list[Any]:
        """Send a message, after `first`, and wait for one whole answer. Raises Fault for none, or one out of form."""
        sent = b"".join(len(part).to_bytes(4, "big") + part for part in (first, marshal.dumps(message, 2)) if part)
        held, found = self.streams["answers"], []

        def arrived() -> bool:
            text = take(held)
            found.extend([] if text is None else [text])
            return bool(found) or self.answers not in self.open

        self.pump(sent, arrived)
        if not found:
            raise Fault(self.ended())
        try:
            return decode(found[0])
        except ValueError as error:
            raise Fault(str(error)) from error

    def finish(self) -> Ended:
        """Wait for a program's end. Raises Late."""
        self.pump(b"", lambda: not self.open)
        try:
            code = self.process.wait(max(self.deadline - time.monotonic(), 0.01))
        except subprocess.TimeoutExpired:
            raise Late(f"no end within {self.limits.seconds:g} s") from None
        output, error = (self.streams[name].decode(errors="replace") for name in ("stdout", "stderr"))
        return Ended(signed(code), output, error, self.cut)

    def pump(self, data: bytes, done: Callable[[], bool]) -> None:
        """Write `data` and read every stream until `done`. Raises Fault at the deadline."""
        poll = select.poll()
        for descriptor in self.open:
            poll.register(descriptor, select.POLLIN)
        if data:
            poll.register(self.requests, select.POLLOUT)
        view = memoryview(data)
        while not done():
            left = self.deadline - time.monotonic()
            if left <= 0:
                raise Late(f"no end within {self.limits.seconds:g} s")
            for descriptor, _ in poll.poll(1000 * left):
                if descriptor != self.requests:
                    if not self.read(descriptor):
                        poll.unregister(descriptor)
                    continue
                try:
                    view = view[os.write(descriptor, view[:CHUNK]) :]
                except BlockingIOError:
                    continue
                except BrokenPipeError:
                    view = view[:0]
                if not view:
                    poll.unregister(descriptor)

    def read(self, descriptor: int) -> bool:
        """Take in what a stream holds; False at its end."""
        name = self.open[descriptor]
        data = os.read(descriptor, CHUNK)
        if not data:
            del self.open[descriptor]
            return False
        held, cap = self.streams[name], ANSWER if name == "answers" else self.limits.output
        kept = data[: max(cap - len(held), 0)]
        held += kept
        if len(kept) < len(data):
            self.cut = self.cut or name == "stdout"
            if name == "answers":
                raise Fault(f"an answer of more than {ANSWER} bytes")
        return True

    def ended(self) -> str:
        """How the process came to an end by itself."""
        try:
            code = self.process.wait(max(self.deadline - time.monotonic(), 0.01))
        except subprocess.TimeoutExpired:
            return "the answers stopped"
        code = signed(code)
        return f"the process ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}"

    def close(self) -> None:
        """Kill what still runs, and give every descriptor back."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process.stdout.close()
            self.process.stderr.close()
        for descriptor in (self.requests, self.answers):
            os.close(descriptor)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def take(held: bytearray) -> bytes | None:
    """The first whole answer, taken out of `held`; None where it is not all there. Raises Fault for a bad length."""
    if len(held) < 8:
        return None
    try:
        size = int(bytes(held[:8]), 16)
    except ValueError:
        size = -1
    if not 0 <= size <= ANSWER:
        raise Fault("an answer without a length")
    if len(held) < 8 + size:
        return None
    text = bytes(held[8 : 8 + size])
    del held[: 8 + size]
    return text


def signed(code: int) -> int:
    """An exit code, with a signal as a negative number also where a program in between turned it into 128 + n."""
    return code if code <= 128 else 128 - code


def run_program(source: str, stdin: str, limits: Limits, tier: str) -> Ended:
    """The source as a program of its own, from beginning to end. Raises Late, InfrastructureError."""
    with Session("program", limits, tier, source=source, stdin=stdin.encode(errors="surrogatepass")) as session:
        return session.finish()
