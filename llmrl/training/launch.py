"""Several processes on this machine, by torch.distributed.run, which starts as many as it is told."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from llmrl.errors import TrainingError


def launch(arguments: Sequence[str], num_processes: int) -> None:
    """Run `llmrl train <arguments>` in `num_processes` processes and wait. TrainingError when one of them fails."""
    threads = max(1, (os.cpu_count() or 1) // num_processes)
    environment = {"OMP_NUM_THREADS": str(threads)} | dict(os.environ)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={num_processes}",
        "-m",
        "llmrl.cli",
        "train",
        *arguments,
    ]
    code = subprocess.run(command, env=environment, check=False).returncode
    if code:
        raise TrainingError(f"a process of the run ended with exit status {code}; its own message stands above.")
