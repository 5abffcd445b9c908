"""Several processes: how many, and what is said when one of them fails."""

from __future__ import annotations

import logging
import signal

import pytest

from llmrl.api import train
from llmrl.errors import LlmrlError, TrainingError
from llmrl.training.launch import agent
from llmrl.training.ranks import others_alive


@pytest.mark.parametrize("number", [0, -3])
def test_no_processes_are_refused(number):
    with pytest.raises(LlmrlError, match=f"{number} processes were asked for; expected at least 1"):
        train("quickstart", num_processes=number)


def test_only_a_lost_process_is_told_as_one():
    with pytest.raises(TrainingError, match="another process of the run is gone"), others_alive():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    with pytest.raises(RuntimeError, match="shape"), others_alive():
        raise RuntimeError("a shape is wrong")


@pytest.mark.processes
@pytest.mark.parametrize(
    ("does", "status", "said"),
    [
        ("raise SystemExit(2)", 2, "process 0 of the run ended with exit status 2"),
        ("import os; os.kill(os.getpid(), 9)", 1, f"process 0 of the run ended by {signal.Signals(9).name}"),
    ],
)
def test_who_failed_is_said_without_a_traceback_of_the_launcher(tmp_path, capfd, does, status, said):
    script = tmp_path / "fails.py"
    script.write_text(does)
    try:
        assert agent(["--standalone", "--nproc-per-node=1", str(script)]) == status
    finally:
        logging.disable(logging.NOTSET)
    told = capfd.readouterr().err
    assert said in told and "ChildFailedError" not in told
