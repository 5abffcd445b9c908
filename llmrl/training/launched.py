"""`python -m llmrl.training.launched <words>`: `llmrl <words>` as one process of a run, which ends with who started it."""

from __future__ import annotations

import ctypes
import os
import runpy
import signal

PR_SET_PDEATHSIG = 1
PARENT = "LLMRL_PARENT"  # the environment variable with the process that this one must not outlive


def end_with_parent() -> None:
    """Have the system kill this process when its parent dies, however that comes to be. Linux only."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is None:
        return
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.environ.get(PARENT, str(os.getppid())) != str(os.getppid()):  # it died before
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    end_with_parent()
    runpy.run_module("llmrl.cli", run_name="__main__", alter_sys=True)
