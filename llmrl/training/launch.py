"""Several processes on this machine, by torch.distributed.run, which starts as many as it is told."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

from llmrl.errors import TrainingError
from llmrl.training.launched import PARENT, end_with_parent
from llmrl.training.stopping import ENDED


def launch(arguments: Sequence[str], num_processes: int) -> None:
    """Run `llmrl train <arguments>` in `num_processes` processes and wait. TrainingError when one of them fails.

    SIGTERM and Ctrl-C reach all of them as one SIGTERM, so that they end together: SystemExit(143), KeyboardInterrupt. A
    second Ctrl-C kills them, and so does the end of this process.
    """
    threads = max(1, (os.cpu_count() or 1) // num_processes)
    environment = {"OMP_NUM_THREADS": str(threads)} | dict(os.environ) | {PARENT: str(os.getpid())}
    command = [
        sys.executable,
        "-m",
        "llmrl.training.launch",
        "--standalone",
        f"--nproc-per-node={num_processes}",
        "-m",
        "llmrl.training.launched",
        "train",
        *arguments,
    ]
    # a session of their own: a terminal's Ctrl-C would reach each of them twice, from it and from their parent
    parent = subprocess.Popen(command, env=environment, start_new_session=True)
    asked: list[int] = []

    def receive(number: int, _: FrameType | None) -> None:
        asked.append(number)
        if asked.count(signal.SIGINT) > 1:
            os.killpg(parent.pid, signal.SIGKILL)
        elif len(asked) == 1:
            parent.terminate()

    before = {number: signal.signal(number, receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        code = parent.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        raise KeyboardInterrupt if asked[0] == signal.SIGINT else SystemExit(ENDED)
    if code:
        raise TrainingError(
            f"the run ended with exit status {code}; the message of the process that failed stands above. What is done is kept: "
            "the same command goes on from the last checkpoint."
        )


def agent(arguments: list[str]) -> int:
    """torch.distributed.run with these arguments; the exit status. It says who failed first in a line of its own, where
    torch would add its tracebacks and a table below that process's own message.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    logging.disable(logging.ERROR)
    try:
        main(arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
        print(f"process {rank} of the run {how}; the others were ended.", file=sys.stderr)
        return code if code > 0 else 1
    except SignalException as error:
        return 128 + error.sigval
    return 0


if __name__ == "__main__":
    end_with_parent()
    os.environ[PARENT] = str(os.getpid())
    sys.exit(agent(sys.argv[1:]))
