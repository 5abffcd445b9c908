"""How many processes, and what they share: what cannot be done is refused before anything loads."""

from __future__ import annotations

import logging
import signal
from types import SimpleNamespace

import pytest
from accelerate.utils import DistributedType
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy

from llmrl.api import train
from llmrl.errors import LlmrlError, TrainingError
from llmrl.training.launch import agent
from llmrl.training.ranks import chosen, others_alive


def configured(kind, size=2, version=2, offload=False):
    """What accelerate makes of such a configuration."""
    plugin = SimpleNamespace(cpu_offload=CPUOffloadPolicy() if offload else OffloadPolicy())
    return SimpleNamespace(
        distributed_type=kind, num_processes=size, is_fsdp2=version == 2, state=SimpleNamespace(fsdp_plugin=plugin)
    )


@pytest.mark.parametrize("number", [0, -3])
def test_no_processes_are_refused(number):
    with pytest.raises(LlmrlError, match=f"{number} processes were asked for; expected at least 1"):
        train("quickstart", num_processes=number)


@pytest.mark.parametrize(
    ("kind", "asked", "expected"),
    [
        (DistributedType.MULTI_CPU, "auto", "ddp"),
        (DistributedType.MULTI_CPU, "fsdp", "fsdp"),
        (DistributedType.MULTI_GPU, "fsdp", "fsdp"),
        (DistributedType.FSDP, "auto", "fsdp"),
    ],
)
def test_the_recipe_or_accelerate_says_what_is_shared(kind, asked, expected):
    assert chosen(asked, configured(kind)) == expected


def test_one_process_has_nobody_to_share_with():
    assert chosen("fsdp", configured(DistributedType.NO, size=1)) == "ddp"


@pytest.mark.parametrize(
    ("asked", "found", "told"),
    [
        ("auto", configured(DistributedType.FSDP, version=1), "fsdp_version: 2"),
        ("auto", configured(DistributedType.FSDP, offload=True), "fsdp_offload_params: false"),
        ("auto", configured(DistributedType.DEEPSPEED), "DEEPSPEED. Set distributed_type: FSDP"),
        ("fsdp", configured(DistributedType.MEGATRON_LM), "MEGATRON_LM"),
        ("ddp", configured(DistributedType.FSDP), "parallel=ddp"),
    ],
)
def test_what_accelerate_is_told_and_llmrl_does_not_do_is_refused(asked, found, told):
    with pytest.raises(TrainingError, match=told):
        chosen(asked, found)


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
