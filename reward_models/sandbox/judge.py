"""Verdicts. What is expected never enters the process that runs the response; only plain values come out of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from reward_models.sandbox import tiers
from reward_models.sandbox.calls import Call
from reward_models.sandbox.errors import Fault, Late, SandboxError
from reward_models.sandbox.remote import Remote, is_address, run_remotely
from reward_models.sandbox.session import Ended, Limits, Session, run_program

LONGEST_REASON = 200


@dataclass(frozen=True)
class Verdict:
    """passed of total tests; reason: why the first one failed, or None; seconds: wall time; tier: which walls."""

    passed: int
    total: int
    reason: str | None
    seconds: float
    tier: str


def judge_calls(
    source: str, setup: str, calls: Sequence[Call], limits: Limits, backend: str, *, every: bool = False
) -> Verdict:
    """Run the source, then the test's own setup, and ask one call after the other; stops at the first failure unless `every`.

    limits.seconds holds for all calls together. After a fault (a crash, a late answer) the process is gone, and the
    remaining calls count as failed. Raises SandboxError.
    """
    start, passed, reason = time.monotonic(), 0, None
    with candidate(backend, limits) as session:
        try:
            for text in filter(None, (source, setup)):
                require(session.ask("run", text))
            for number, (call, answer) in enumerate(zip(calls, session.ask_all(calls), strict=False), 1):
                wrong = judged(call, *answer)
                passed += wrong is None
                reason = reason or (wrong and f"test {number}: {wrong}")
                if wrong is not None and not every:
                    break
        except Fault as fault:
            reason = reason or f"test {passed + 1}: {fault}"
    return Verdict(passed, len(calls), reason, since(start), session.tier)


def judge_tests(source: str, prelude: str, tests: str, entry: str | None, limits: Limits, backend: str) -> Verdict:
    """Run test code in one sandbox and the source in another; calls go between them as plain data, by way of here.

    entry: the function under test, with which the tests' `check` is called; None: the tests run as they stand, and what
    they do not define is looked up in the candidate. The verdict comes out of the tests' process.
    Raises ValueError where the test code itself is broken, SandboxError.
    """
    start = time.monotonic()
    local = tier_for("auto" if is_address(backend) else backend)
    with candidate(backend, limits) as session, Session("tests", limits, local) as testing:
        try:
            require(session.ask("run", source))
            kind, said = relayed(session, testing, (prelude, tests, entry))
        except Fault as fault:
            kind, said = "failed", str(fault)
    if kind == "broken":
        raise ValueError(f"the prompt's tests do not run: {str(said)[:LONGEST_REASON]}")
    passed = kind == "passed"
    return Verdict(int(passed), 1, None if passed else str(said)[:LONGEST_REASON], since(start), session.tier)


def judge_programs(
    source: str,
    runs: Sequence[tuple[str, Callable[[str], bool]]],
    limits: Limits,
    backend: str,
    *,
    every: bool = False,
    total_seconds: float = 100.0,
) -> Verdict:
    """Run the source as a program once for each (standard input, whether an output is right), each time in a new sandbox.

    limits.seconds holds for each run; what has not begun after total_seconds counts as failed. An output of more than
    limits.output bytes is wrong, as is any with an exit code other than 0. Raises SandboxError.
    """
    start, passed, reason = time.monotonic(), 0, None
    tier = "remote" if is_address(backend) else tier_for(backend)
    for number, (text, right) in enumerate(runs, 1):
        late = since(start) > total_seconds
        wrong = f"not begun after {total_seconds:g} s" if late else run(source, text, right, limits, backend)
        passed += wrong is None
        reason = reason or (wrong and f"test {number}: {wrong}")
        if late or (wrong is not None and not every):
            break
    return Verdict(passed, len(runs), reason, since(start), tier)


def candidate(backend: str, limits: Limits) -> Session | Remote:
    """Where a response is run and asked."""
    return Remote(backend, limits) if is_address(backend) else Session("candidate", limits, tier_for(backend))


def since(start: float) -> float:
    """Seconds, to the millisecond."""
    return round(time.monotonic() - start, 3)


def judged(call: Call, kind: str, value: Any) -> str | None:
    """Why an answer to a call is wrong, or None."""
    if kind != "value":
        return told(kind, value)
    try:
        return None if call.holds(value) else "wrong value"
    except Exception as error:  # such as comparing a number with text: the value is at fault
        return f"wrong value ({type(error).__name__})"


def require(answer: tuple[str, Any]) -> None:
    """Raises Fault unless the answer is a value."""
    kind, value = answer
    if kind != "value":
        raise Fault(told(kind, value))


def told(kind: str, value: Any) -> str:
    """An answer that is no value, in words."""
    if kind == "raised" and isinstance(value, tuple) and len(value) == 2:
        return f"raised {value[1]}"[:LONGEST_REASON]
    return f"returned {value}"[:LONGEST_REASON] if kind == "opaque" else "answered out of form"


def relayed(session: Session | Remote, testing: Session, message: tuple[str, str, str | None]) -> tuple[str, Any]:
    """Carry calls and answers until the tests end: (kind, words) of the verdict. Raises Fault, SandboxError."""
    answer: Any = None
    while True:
        try:
            kind, value = testing.test(*message) if answer is None else testing.resume(answer)
        except Late:
            raise
        except Fault as fault:
            raise SandboxError(
                f"sandbox: the process that runs the tests failed: {fault}. Look at the test."
            ) from fault
        if kind != "call":
            return kind, value
        name, arguments, named = value
        answer = session.ask("apply", name, arguments, named)


def run(source: str, text: str, right: Callable[[str], bool], limits: Limits, backend: str) -> str | None:
    """Why one run of a program is wrong, or None."""
    try:
        if is_address(backend):
            ended = run_remotely(backend, source, text, limits)
        else:
            ended = run_program(source, text, limits, tier_for(backend))
    except Fault as fault:
        return str(fault)
    return ended_wrong(ended, limits) or (None if right(ended.output) else "wrong output")


def ended_wrong(ended: Ended, limits: Limits) -> str | None:
    """Why the way a program ended is wrong, whatever it wrote."""
    if ended.code != 0:
        how = f"signal {-ended.code}" if ended.code < 0 else f"exit code {ended.code}"
        return f"ended with {how}: {ended.error.strip().rpartition(chr(10))[2]}"[:LONGEST_REASON]
    return f"wrote more than {limits.output} bytes" if ended.cut else None


def tier_for(backend: str) -> str:
    """'bubblewrap' or 'landlock', the first that holds for 'auto'. Raises SandboxError when there is none."""
    return tiers.choose(backend, self_check)


PROBES = """
import os, socket
def tried(action):
    try:
        action()
    except OSError:
        return "refused"
    return "done"
def probes():
    return {
        "network": tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)),
        "processes": tried(lambda: os.fork() or os._exit(0)),
        "writing": tried(lambda: open("/tmp/canary", "w")),
        "reading": tried(lambda: open("/etc/passwd")),
    }
"""


def self_check(tier: str) -> str | None:
    """What a tier lets through that it must not, or why it does not start; None when it holds."""
    try:
        with Session("candidate", Limits(seconds=10), tier) as session:
            session.ask("run", PROBES)
            kind, found = session.ask("evaluate", "probes()")
    except (Fault, SandboxError) as error:
        return str(error)
    if kind != "value":
        return f"its self-check failed: {found}"
    loose = [name for name, said in found.items() if said != "refused"]
    return f"does not hold against {', '.join(loose)}" if loose else None
