"""The process that scorers' processes are forked from: it has imported what they need and runs nothing itself.

Started as `python -m llmrl.pool.zygote FD`. It answers one request at a time and ends, with everything it has started,
when the trainer closes its side.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import marshal
import os
import signal
import socket
import sys
import time

from llmrl.limits import Limits
from llmrl.pool.worker import serve

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LARGEST_REQUEST = 1 << 16


def main(descriptor: int) -> None:
    control = socket.socket(fileno=descriptor)
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1)  # what a scorer leaves behind comes to us, to be ended
    workers: set[int] = set()
    trainer = os.getppid()
    control.settimeout(1.0)
    while True:
        try:
            data, descriptors, _, _ = socket.recv_fds(control, LARGEST_REQUEST, 1)
        except TimeoutError:  # a process that the trainer has forked may keep its side open after its end
            if os.getppid() != trainer:
                break
            continue
        except ConnectionError:  # closed before it has read every answer
            break
        if not data:
            break
        verb, argument = marshal.loads(data)  # noqa: S302 - from the trainer
        if verb == "preload":
            answer = preload(*argument)
        elif verb == "fork":
            gc.freeze()
            connection = socket.socket(fileno=descriptors[0])
            pid = os.fork()
            if pid == 0:
                prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
                os.setsid()
                control.close()
                with contextlib.suppress(ConnectionError):  # the trainer has closed before the last answer
                    serve(connection, Limits(*argument))
                os._exit(0)
            connection.close()
            workers.add(pid)
            answer = pid
        else:
            answer = end(argument)
            workers.discard(argument)
            end_strays(workers)
        try:
            control.sendall(json.dumps(answer).encode())
        except ConnectionError:  # closed before the answer
            break
    for pid in workers:
        end(pid)
    end_strays(set())


def preload(modules: list[str], seconds: float) -> dict[str, str]:
    """Import them; what could not be imported is left to the process that needs it, which says why.

    The system ends this process when that takes longer: nobody else would, were the trainer gone.
    """
    failed = {}
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    for module in modules:
        try:
            importlib.import_module(module)
        except BaseException as error:  # noqa: BLE001 - a module may do anything when it is imported
            failed[module] = repr(error)[:300]
    signal.setitimer(signal.ITIMER_REAL, 0)
    return failed


def end(pid: int) -> int:
    """Kill a worker with its process group and return its wait status; one that had died before keeps its own."""
    with contextlib.suppress(ChildProcessError):
        done, status = os.waitpid(pid, os.WNOHANG)
        deadline = time.monotonic() + 0.05  # one that closed its connection may be about to exit by itself
        while not done and time.monotonic() < deadline:
            time.sleep(0.002)
            done, status = os.waitpid(pid, os.WNOHANG)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        if not done:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
        return status
    return 0


def end_strays(workers: set[int]) -> None:
    """Kill what scorers started and left behind."""
    for _ in range(100):  # each round may hand us the children of those just killed
        strays = children() - workers
        if not strays:
            return
        for pid in strays:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def children() -> set[int]:
    me = os.getpid()
    with open(f"/proc/{me}/task/{me}/children") as file:
        return set(map(int, file.read().split()))


if __name__ == "__main__":
    main(int(sys.argv[1]))
