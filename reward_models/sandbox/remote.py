"""A SandboxFusion server as the sandbox: POST /run_code (github.com/bytedance/SandboxFusion, sandbox/server/sandbox_api.py).

A request runs one program from beginning to end, so calls are sent along with the source, and their answers come back on
standard output. As elsewhere nothing that is expected goes in and nothing but plain data is read.
"""

from __future__ import annotations

import marshal
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any

from reward_models.posted import posted
from reward_models.sandbox import tiers
from reward_models.sandbox.calls import Call
from reward_models.sandbox.errors import Fault, InfrastructureError, Late
from reward_models.sandbox.session import ANSWER, PAUSES, Ended, Limits, take
from reward_models.sandbox.wire import decode

OVERHEAD = 30.0  # seconds beyond the run's own limit before a request counts as lost
REPLY = 64 << 20  # bytes of a reply that are read


def is_address(backend: str) -> bool:
    """Whether a backend names a server."""
    return backend.startswith(("http://", "https://"))


class Remote:
    """Answers like a Session; every `ask` but 'run' is a run of its own, with all the source given so far."""

    tier = "remote"

    def __init__(self, address: str, limits: Limits):
        self.address, self.limits, self.sources = address, limits, []

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ask(self, kind: str, *rest: Any) -> tuple[str, Any]:
        """(kind, value) of the answer. 'run' waits for the next question; then an exception counts as its answer."""
        if kind == "run":
            self.sources.append(rest[0])
            return "value", None
        return next(self.answers([(kind, *rest)]))

    def ask_all(self, calls: Sequence[Call]) -> Iterator[tuple[str, Any]]:
        """The answers to all calls, out of one run."""
        return self.answers([call.request for call in calls])

    def answers(self, requests: Sequence[tuple[Any, ...]]) -> Iterator[tuple[str, Any]]:
        """Run the sources, then each request. Raises Fault at the first that was not answered."""
        nonces = [secrets.token_hex(8) for _ in requests]
        message = (self.sources, [(nonce, *request) for nonce, request in zip(nonces, requests, strict=True)])
        program = f"{tiers.DRIVER}\nbe_batch({marshal.dumps(message, 2)!r})\n"
        ended = run_remotely(self.address, program, "", self.limits)
        held = bytearray(ended.output.encode(errors="replace"))
        for nonce in nonces:
            text = take(held)
            if text is None:
                raise Fault(f"the program ended with exit code {ended.code}")
            try:
                said, kind, value = decode(text)
            except ValueError as error:
                raise Fault(str(error)) from error
            if said != nonce:
                raise Fault("answered a question that was not asked")
            yield kind, value


def run_remotely(address: str, source: str, stdin: str, limits: Limits) -> Ended:
    """One program on the server. Raises Late at its time limit, InfrastructureError where the server fails."""
    request = {
        "code": source,
        "language": "python",
        "stdin": stdin,
        "run_timeout": limits.seconds,
        "compile_timeout": limits.seconds,
        "memory_limit_MB": int(limits.memory_gb * 1024),
    }
    for pause in (*PAUSES, None):
        try:
            found = post(f"{address.rstrip('/')}/run_code", request, limits.seconds + OVERHEAD)
            result = found.get("run_result") or {}
            if found.get("status") not in ("Success", "Failed") or result.get("status") not in (
                "Finished",
                "TimeLimitExceeded",
            ):
                raise ValueError(f"status {found.get('status')!r}: {str(found.get('message'))[:200]}")
            break
        except (OSError, ValueError, AttributeError) as error:
            if pause is None:
                raise InfrastructureError(
                    f"sandbox server {address}: {error} ({len(PAUSES) + 1} attempts). Is it a SandboxFusion server?"
                ) from error
            time.sleep(pause)
    if result["status"] == "TimeLimitExceeded":
        raise Late(f"no end within {limits.seconds:g} s")
    output = result.get("stdout") or ""
    code = result.get("return_code")
    return Ended(
        code if code is not None else 1, output, result.get("stderr") or "", len(output) > max(limits.output, ANSWER)
    )


def post(address: str, request: dict[str, Any], timeout: float) -> dict[str, Any]:
    """The JSON that a server answers. Raises OSError or ValueError."""
    import httpx

    try:
        return posted(address, request, seconds=timeout, largest=REPLY, proxied=True)
    except httpx.HTTPError as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
