"""A process that runs scorers: it takes calls, one message after the other, and answers each as soon as it is done."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import json
import marshal
import math
import os
import resource
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from llmrl import calls, confinement
from llmrl.limits import Limits
from llmrl.pool.wire import Mail, send, unpacked_groups
from llmrl.redaction import Guarded


def serve(connection: socket.socket, limits: Limits) -> None:
    """Answer until the trainer closes its side.

    Messages are marshalled: ('learn', key, how) makes a scorer known, ('run', key, shape, seconds, [(id, groups), ...])
    calls it. Answers are JSON: {'id', 'seconds', 'scores'} or {'id', 'error'}; to 'learn' {'id': null}.
    """
    os.dup2(2, 1)  # what a scorer prints must not mix with the trainer's output
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    sys.stdout, sys.stderr = Guarded(sys.stdout), Guarded(sys.stderr)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    confined = False
    functions: dict[str, Callable] = {}
    refused: dict[str, str] = {}
    mail = Mail(connection)
    while (message := mail.next()) is not None:
        kind, key, *rest = marshal.loads(message)  # noqa: S302 - from the trainer
        if kind == "learn":
            limit_cpu(math.inf)  # what the last call was allowed is not for importing
            try:
                functions[key] = made(*rest)
            except BaseException as error:  # noqa: BLE001 - a module may do anything when it is imported
                refused[key] = calls.reason(error)
            reply(connection, {"id": None})
            continue
        if not confined:
            confine(limits)
            confined = True
        if key in refused:
            for id, _ in rest[-1]:
                reply(connection, {"id": id, "error": refused[key]})
        else:
            run(mail, key, functions[key], *rest)


def confine(limits: Limits) -> None:
    """Put the limits on this process, after everything is imported."""
    if limits.memory_gb is not None:
        with open("/proc/self/statm") as file:  # the imports of every scorer came with the fork
            held = int(file.read().split()[5]) * resource.getpagesize()
        size = held + int(limits.memory_gb * 1024**3)
        # of what is written, not of address space: GPU libraries reserve much more of that than they ever use
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (size if hard < 0 else min(size, hard), hard))
    if limits.confined and confinement.available() is None:
        confinement.confine(read=None)


def made(source: str, code: bytes, options: dict[str, Any]) -> Callable:
    """The scorer: 'module:attribute', or for want of one the function itself as the trainer's dill wrote it."""
    if source:
        module, _, attribute = source.partition(":")
        function = functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
    else:
        import dill

        function = dill.loads(code)  # noqa: S301 - the user's function from the trainer, never model text
    return functools.partial(function, **options) if options else function


def run(mail: Mail, key: str, function: Callable, shape: str, seconds: float, jobs: list) -> None:
    """Answer every job of one message; those of an asynchronous scorer together."""
    connection = mail.connection
    if calls.is_async(function):
        limit_cpu(math.inf)
        with contextlib.suppress(ConnectionError):
            asyncio.run(run_together(mail, key, function, shape, seconds, jobs))
        return
    for id, packed in jobs:
        limit_cpu(seconds)
        start = time.perf_counter()
        try:
            groups = unpacked_groups(packed)
            scores = calls.read(shape, groups, calls.bound(function, shape, groups)())
        except BaseException as error:  # noqa: BLE001 - also SystemExit: the process goes on with the next call
            reply(connection, {"id": id, "error": calls.reason(error)})
        else:
            answer(connection, id, scores, time.perf_counter() - start)


async def run_together(mail: Mail, key: str, function: Callable, shape: str, seconds: float, jobs: list) -> None:
    """Answer the jobs, and those that messages for the same scorer bring meanwhile."""
    connection, loop = mail.connection, asyncio.get_running_loop()
    running: set[asyncio.Task] = set()
    ended = asyncio.Event()

    async def one(id: int, packed: bytes, seconds: float) -> None:
        start = time.perf_counter()
        try:
            groups = unpacked_groups(packed)
            found = await asyncio.wait_for(contained(calls.bound(function, shape, groups)()), seconds)
            scores = calls.read(shape, groups, found)
        except TimeoutError as error:
            reply(connection, {"id": id, "error": calls.readable(str(error)) or f"no answer within {seconds:g} s"})
        except BaseException as error:  # noqa: BLE001 - also SystemExit: the process goes on with the next call
            reply(connection, {"id": id, "error": calls.reason(error)})
        else:
            answer(connection, id, scores, time.perf_counter() - start)

    def begin(jobs: list, seconds: float) -> None:
        for id, packed in jobs:
            task = loop.create_task(one(id, packed, seconds))
            running.add(task)
            task.add_done_callback(end)

    def end(task: asyncio.Task) -> None:
        running.discard(task)
        if not running:
            ended.set()

    def more() -> None:
        if not mail.read():
            os._exit(0)  # nobody waits for an answer any more
        while mail.messages:
            verb, whose, *rest = marshal.loads(mail.messages[0])  # noqa: S302 - from the trainer
            if (verb, whose) != ("run", key):  # the trainer has every answer, though the last task is not quite over
                loop.remove_reader(connection)
                return
            mail.messages.popleft()
            begin(rest[-1], rest[-2])

    loop.set_default_executor(Unawaited())
    begin(jobs, seconds)
    loop.add_reader(connection, more)
    try:
        while running:
            ended.clear()
            await ended.wait()
    finally:
        loop.remove_reader(connection)


class Unawaited(ThreadPoolExecutor):
    """Threads that the end of the loop does not wait for: a late call may sit in one for ever."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait=False, cancel_futures=cancel_futures)


async def contained(coroutine: Coroutine) -> Any:
    """What the coroutine gives; SystemExit and KeyboardInterrupt, which would end the event loop, as another error."""
    try:
        return await coroutine
    except (SystemExit, KeyboardInterrupt) as error:
        raise RuntimeError(calls.reason(error)) from None


def limit_cpu(seconds: float) -> None:
    """A process that has used more CPU than the call's wall time allows, on all its threads, is ended by the system.

    Infinity: no limit.
    """
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if seconds == math.inf:
        soft = hard
    else:
        soft = math.ceil(used.ru_utime + used.ru_stime + seconds * len(os.sched_getaffinity(0))) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard < 0 else min(soft, hard), hard))


def answer(connection: socket.socket, id: int, scores: list, seconds: float) -> None:
    """Send the scores of one call, if they are plain data of a reasonable size."""
    try:
        texts = [json.dumps(calls.plain(score)) for score in scores]
        if too_large := next((text for text in texts if len(text) > calls.LARGEST_SCORE), None):
            raise ValueError(
                f"a score takes {len(too_large)} characters as JSON; at most {calls.LARGEST_SCORE} are kept"
            )
    except BaseException as error:  # noqa: BLE001 - evidence may hold any object
        reply(connection, {"id": id, "error": f"its Score is not plain data: {calls.reason(error)}"[:300]})
        return
    send(connection, f'{{"id": {id}, "seconds": {seconds:.6f}, "scores": [{", ".join(texts)}]}}'.encode())


def reply(connection: socket.socket, message: dict[str, Any]) -> None:
    send(connection, json.dumps(message).encode())


if __name__ == "__main__":
    sys.exit("llmrl.pool.worker is forked by llmrl.pool.zygote")
