"""vLLM servers on this machine, started, watched and replaced."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from llmrl.errors import RolloutError
from llmrl.redaction import HIDDEN, redact
from llmrl.serving.guard import TOKEN

PROGRAM = "llmrl.serving.replica"
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
STARTS = 3  # of one replica in a row that never answered
GRACE = 10.0  # seconds for a server to end by itself, and as many for what it started
KEY = "PRIVATE KEY-----"
LONGEST_LINE = 1 << 16  # bytes of a log that are searched for secrets together
CPU_KV_CACHE_MEGABYTES = 256  # vLLM's own default is a share of all memory
# of a launcher: a server would take itself for one of the run's processes
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "VLLM_ENABLE_V1_MULTI")


@dataclass(frozen=True)
class ServerOptions:
    """How every server of a fleet is started. max_model_len: tokens of prompt and answer together.

    gpu_memory: share of a GPU. kv_cache_megabytes: exactly so much for keys and values instead.
    """

    model: str
    max_model_len: int
    precision: str = "fp32"
    tensor_parallel: int = 1
    gpu_memory: float = 0.9
    kv_cache_megabytes: int | None = None


class Fleet:
    """Servers on `ports`, each with a thread that starts it, asks it now and then, and starts it anew when it has died or
    has not answered for `patience` seconds. `folder` gets their logs. Ends them all in `close`, and they end by themselves
    when this process does.

    failed: why a server was given up, by its number.
    """

    def __init__(
        self,
        options: ServerOptions,
        ports: list[int],
        token: str,
        folder: Path,
        *,
        host: str = "127.0.0.1",
        patience: float = 60.0,
        startup: float = 600.0,
    ):
        self.options, self.ports, self.token, self.folder, self.host = options, ports, token, folder, host
        self.patience, self.startup = patience, startup
        self.started: dict[int, int] = dict.fromkeys(range(len(ports)), 0)
        self.ready: set[int] = set()
        self.failed: dict[int, str] = {}
        self.sockets = tempfile.mkdtemp(prefix="llmrl-")  # a short name: the system allows sockets about 100 characters
        self.closing = threading.Event()
        self.threads = [threading.Thread(target=self._tend, args=(n,), daemon=True) for n in range(len(ports))]
        for thread in self.threads:
            thread.start()

    @property
    def urls(self) -> list[str]:
        reached = "127.0.0.1" if self.host == "0.0.0.0" else self.host
        return [f"http://{reached}:{port}" for port in self.ports]

    def log(self, number: int) -> Path:
        return self.folder / f"server-{number}.log"

    def states(self) -> dict[int, str]:
        """What each server does: starting or ready, and how often it was started."""
        return {n: f"{'ready' if n in self.ready else 'starting'}, start {k}" for n, k in self.started.items() if k}

    @property
    def replaced(self) -> int:
        """Servers that were started anew so far."""
        return sum(max(starts - 1, 0) for starts in self.started.values())

    def close(self) -> None:
        """End every server."""
        self.closing.set()
        for thread in self.threads:
            thread.join()
        shutil.rmtree(self.sockets, ignore_errors=True)

    def _tend(self, number: int) -> None:
        in_vain = 0
        while not self.closing.is_set() and in_vain < STARTS:
            process = self._start(number)
            copier = threading.Thread(target=self._copy, args=(process.stdout, self.log(number)), daemon=True)
            copier.start()
            reason = self._watch(number, process)
            in_vain = 0 if number in self.ready else in_vain + 1
            self.ready.discard(number)
            end(process)
            copier.join(GRACE)
        if not self.closing.is_set():
            self.failed[number] = (
                f"server {number} {reason}, {STARTS} times in a row. The end of {self.log(number)}: {_tail(self.log(number))}"
            )

    def _start(self, number: int) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-m", PROGRAM, *arguments(self.options, self.host, self.ports[number])],
            env=environment(dict(os.environ), self.token, self.sockets, number, self.options.tensor_parallel),
            stdin=subprocess.PIPE,  # never written to: it closes when this process ends, and the server with it
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.started[number] += 1
        return process

    def _copy(self, said: IO[bytes], log: Path) -> None:
        """What a server prints, to its log, without secrets: it has this process's environment, and the token."""
        held = ""
        with said:
            while line := said.readline(LONGEST_LINE):
                held += line.decode(errors="replace").replace(self.token, HIDDEN)
                if KEY in held and "-----END" not in held and len(held) < LONGEST_LINE:
                    continue  # a private key has many lines, of which only the first one tells
                with (
                    contextlib.suppress(OSError),
                    log.open("ab") as file,
                ):  # a full disk: a pipe not read from would fill up
                    file.write(redact(held).encode())
                held = ""

    def _watch(self, number: int, process: subprocess.Popen) -> str:
        """Why the server is not to be used any longer."""
        heard = time.monotonic()
        while True:
            if process.poll() is not None:
                return f"ended with status {process.returncode}"
            if self._answers(number):
                self.ready.add(number)
                heard = time.monotonic()
            silent = time.monotonic() - heard
            if silent > (self.patience if number in self.ready else self.startup):
                return f"did not answer for {silent:.0f} s"
            if self.closing.wait(0.5 if number not in self.ready else min(2.0, self.patience / 4)):
                return "was closed"

    def _answers(self, number: int) -> bool:
        """Whether its workers answer, not only the process before them."""
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        body = json.dumps({"method": "llmrl_state"}).encode()
        address = f"{self.urls[number]}/collective_rpc"
        request = urllib.request.Request(address, data=body, headers=headers)
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with contextlib.suppress(OSError, ValueError), direct.open(request, timeout=self.patience) as answer:
            return answer.status == 200
        return False


def arguments(options: ServerOptions, host: str, port: int) -> list[str]:
    """vLLM's command line: weights come from a trainer alone, every route is guarded."""
    cpu = not _gpus()
    megabytes = options.kv_cache_megabytes or (CPU_KV_CACHE_MEGABYTES if cpu else None)
    size = ["--kv-cache-memory-bytes", megabytes << 20] if megabytes else []
    words = [
        *("--model", options.model, "--host", host, "--port", port),
        *("--middleware", "llmrl.serving.guard.Guard"),
        *("--worker-extension-cls", "llmrl.serving.weights.WeightsFromFile"),
        *("--load-format", "dummy", "--generation-config", "vllm", "--logprobs-mode", "processed_logprobs"),
        *("--dtype", DTYPES[options.precision], "--max-model-len", options.max_model_len),
        *("--tensor-parallel-size", options.tensor_parallel, "--gpu-memory-utilization", options.gpu_memory),
        # a prompt read in pieces would make vLLM turn seeded generators back, which those of a CPU cannot
        *(["--enforce-eager", "--no-enable-chunked-prefill"] if cpu else []),
        *(["--distributed-executor-backend", "uni"] if options.tensor_parallel == 1 else []),
        *size,
        *("--seed", 0, "--disable-log-stats", "--disable-uvicorn-access-log"),
    ]
    return [str(word) for word in words]


def environment(around: dict[str, str], token: str, sockets: str, number: int, tensor_parallel: int) -> dict[str, str]:
    """A server's variables: those around it less a launcher's, its token, its share of the GPUs."""
    kept = {name: value for name, value in around.items() if not name.startswith(LAUNCHER)}
    defaults = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1", "VLLM_HOST_IP": "127.0.0.1"}
    ours = {TOKEN: token, "VLLM_SERVER_DEV_MODE": "1", "VLLM_RPC_BASE_PATH": sockets}
    gpus = _gpus()
    if gpus:
        first = number * tensor_parallel % len(gpus)
        ours["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[first : first + tensor_parallel])
    else:
        # its sampler is compiled even in eager mode: half a minute for the first token
        defaults |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCHDYNAMO_DISABLE": "1"}
    return defaults | kept | ours


def _gpus() -> list[str]:
    """Names of the GPUs that this process sees."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(n) for n in range(torch.cuda.device_count())]


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody uses at the moment."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def read_token(file: str | None) -> str:
    """The servers' token, from the file or else from the environment. RolloutError when there is none."""
    if file is not None:
        try:
            token = Path(file).read_text().strip()
        except OSError as error:
            raise RolloutError(
                f"rollout.engine.token_file: {error}. `llmrl serve` says where it wrote its own."
            ) from error
    else:
        token = os.environ.get(TOKEN, "")
    if not token:
        raise RolloutError(
            f"no token for the servers: set {TOKEN}, or rollout.engine.token_file to the file that `llmrl serve` wrote."
        )
    return token


def _signal(process: subprocess.Popen, what: int) -> bool:
    """Whether there was anything of the server left to send it to."""
    try:
        os.killpg(process.pid, what)
    except ProcessLookupError:
        return False
    return True


def end(process: subprocess.Popen) -> None:
    """End a server and all it started: asked first, as one that is killed leaves its shared memory behind."""
    _signal(process, signal.SIGTERM)
    _signal(process, signal.SIGCONT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    deadline = time.monotonic() + GRACE
    while _signal(process, 0) and time.monotonic() < deadline:
        time.sleep(0.1)
    _signal(process, signal.SIGKILL)
    process.wait()
    process.stdin.close()


def _tail(log: Path) -> str:
    lines = log.read_bytes()[-4000:].decode(errors="replace").splitlines()
    said = "\n".join("".join(c if c.isprintable() else " " for c in line) for line in lines[-15:])
    return f"\n{said}"
