"""Rollouts by vLLM servers: requests spread over them, weights by a file, and no answer by other weights than asked for."""

from __future__ import annotations

import asyncio
import math
import secrets
import shutil
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
import torch.distributed

from llmrl.errors import LlmrlError, RecipeError, RolloutError
from llmrl.rollout.checks import next_logprobs, probe_ids, refuse_impossible, spread
from llmrl.rollout.completions import read_choice, request
from llmrl.rollout.engine import Context, Finished, Weights
from llmrl.rollout.servers import PROBE, SHORT_WAIT, Server, Servers, Wanted, cancelled
from llmrl.serving.client import Fault, base_url
from llmrl.serving.fleet import Fleet, ServerOptions, free_ports, read_token
from llmrl.serving.weights import own_folder, write_weights
from llmrl.types import Prompt, Rollout, Sampling

LOOK = 0.05  # seconds after which the caller is let in while others sample
AT_ONCE = 512  # samples that one server is asked for at a time
BYTES_A_TOKEN = 600  # of an answer, at most


@dataclass(frozen=True)
class Job:
    """Samples of one prompt that are still missing. failed: the servers that were asked for them, in turn."""

    number: int
    samples: tuple[int, ...]
    failed: tuple[Server, ...] = ()


class VllmServerEngine:
    """Rollouts by `llmrl serve` elsewhere (`urls`), or by servers of the run's own (`replicas`).

    The weights go through a file; a server samples only while its workers hold the version of the last sync, and what it
    answered counts only if they still do afterwards. A server that fails is left out until it has been given the weights
    again; what it owed is asked of the others, and nothing else. Sample i of a prompt is the same whoever answers.
    Raises RolloutError when no server can be used, and for what asking again will not mend.
    """

    own_weights = True

    def __init__(
        self,
        context: Context,
        *,
        urls: tuple[str, ...] = (),
        replicas: int = 1,
        token_file: str | None = None,
        weights_folder: str | None = None,
        timeout: float = 600.0,
        heartbeat: float = 60.0,
        retries: int = 4,
        tensor_parallel: int = 1,
        gpu_memory: float = 0.5,
        kv_cache_megabytes: int | None = None,
    ):
        """urls: servers that run already; without any, `replicas` are started here, and the last three options are theirs.

        token_file: holds the token of `urls`; None: LLMRL_SERVER_TOKEN does. weights_folder: reached by trainer and
        servers under this name; None: the machine's shared memory. timeout: seconds for one request, and for which no
        server at all may be fit for use. heartbeat: seconds after which a server at work is asked whether it is alive, and
        which it has for any short answer and for loading the weights. retries: requests for a sample after the first.
        """
        if context.per_token:
            raise RecipeError(
                "rollout.engine: vllm_server sets no temperature token by token, which this algorithm asks for. Use vllm or "
                "transformers."
            )
        if urls and replicas != 1:
            raise RecipeError(
                "rollout.engine: found urls and replicas; expected servers that run, or a number to start."
            )
        self.context, self.retries = context, retries
        self.max_model_len = context.max_prompt_tokens + context.max_tokens
        self.fleet: Fleet | None = None
        self.folder: Path | None = None
        self.servers: Servers | None = None
        self.asked_again = 0  # samples
        self.told: dict[str, float] = {}  # by `measured`, since the start
        self.loop = asyncio.new_event_loop()
        self.main = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
        options = ServerOptions(
            str(context.policy.path),
            self.max_model_len,
            context.precision,
            tensor_parallel,
            gpu_memory,
            kv_cache_megabytes,
        )

        def prepare() -> tuple[Path, list[str], str]:
            self.folder = own_folder(weights_folder)
            if urls:
                return self.folder, [base_url(url) for url in urls], read_token(token_file)
            token, ports = secrets.token_urlsafe(32), free_ports(replicas)
            self.fleet = Fleet(options, ports, token, self.folder, patience=heartbeat, startup=timeout)
            return self.folder, self.fleet.urls, token

        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        try:
            self.folder, addresses, token = self._agreed(prepare)
            self.servers = Servers(addresses, token, timeout=timeout, heartbeat=heartbeat, fleet=self.fleet)
            self.sync(context.policy, 0)
        except BaseException:
            self.close()
            raise

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        num_samples: int,
        seeds: Sequence[int],
        finished: Finished | None = None,
    ) -> list[list[Rollout]]:
        """See `llmrl.rollout.engine.Engine`. A prompt's samples are one request; samples that come back broken or not at
        all are asked for again, under the seeds they had. `finished` is called whenever some have come.
        """
        refuse_impossible(prompts, sampling, self.max_model_len)
        if self.version is None:
            raise RolloutError("the last weight sync failed, and no server samples by older weights. Sync again.")
        if not prompts:
            return []
        asked = num_samples if sampling.temperature > 0 else 1  # vLLM refuses several samples that are all the same
        come: SimpleQueue[tuple[int, list[Rollout]]] = SimpleQueue()

        def tell() -> None:
            if finished is not None:
                finished({number: row * (num_samples // asked) for number, row in drained(come)})

        rows = self._run(self._generate(prompts, sampling, asked, seeds, come), tell)
        return [row * (num_samples // asked) for row in rows]

    def sync(self, policy: Weights, version: int) -> None:
        """Write the weights and have every server load them; one that cannot is left out until it can.

        Raises RolloutError when no server holds them in time, or when one computes other log-probabilities than the
        policy does.
        """
        self.version: int | None = None
        probe, weights = probe_ids(self.context), policy.named_weights()
        expected = next_logprobs(policy, probe, self.context, PROBE.temperature)[-1]
        tag = self._agreed(lambda: f"{version}-{secrets.token_hex(8)}")
        path = self.folder / f"{tag}.safetensors"
        kind, precision = type(policy.model).__name__, self.context.precision
        self._run(self.servers.want(Wanted(tag, path, probe, expected, kind, precision, self.max_model_len)))

        def push() -> None:
            for old in self.folder.glob("*.safetensors"):
                old.unlink()
            write_weights(weights, path, tag, torch.bfloat16 if precision == "bf16" else torch.float32)
            self._run(self.servers.settle())

        if not self.main:
            for _ in weights:  # where ranks hold shards, each has to take part in gathering them
                pass
        self._agreed(push)
        self.version = version

    def measured(self) -> dict[str, float]:
        """See `llmrl.rollout.engine.Engine`. Servers are counted by the process that cares for them."""
        totals: dict[str, float] = {"rollout/asked_again": self.asked_again}
        if self.fleet is not None:
            totals["rollout/servers_replaced"] = self.fleet.replaced
        since = {name: number - self.told.get(name, 0) for name, number in totals.items()}
        self.told = totals
        serving = {"rollout/servers": sum(s.loads is not None for s in self.servers.every)} if self.main else {}
        return since | serving

    def close(self) -> None:
        """End the servers that this engine started, and remove what they were given."""
        if self.fleet is not None:
            self.fleet.close()
        if self.main and self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        if self.servers is not None:
            self._run(self.servers.close())
            self.servers = None
        self.loop.call_soon_threadsafe(self.loop.stop)

    async def _generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, num_samples: int, seeds: Sequence[int], come: SimpleQueue
    ) -> list[list[Rollout]]:
        found: list[dict[int, Rollout]] = [{} for _ in prompts]
        jobs: asyncio.Queue[Job] = asyncio.Queue()
        for number in range(len(prompts)):
            jobs.put_nowait(Job(number, tuple(range(num_samples))))
        complete = asyncio.Event()

        async def lane(server: Server) -> None:
            while True:
                await self.servers.ready(server)
                job, loads = await jobs.get(), server.loads
                others = [s for s in self.servers.every if s.loads is not None and s not in job.failed]
                if loads is None or (server in job.failed and others):
                    jobs.put_nowait(job)
                    await asyncio.sleep(SHORT_WAIT)
                    continue
                prompt, seed = prompts[job.number], spread(seeds[job.number]) + job.samples[0]
                try:
                    samples, reason = await self._ask(server, loads, job, prompt, sampling, seed)
                    found[job.number] |= samples
                except Fault as fault:
                    self.servers.leave_out(server, loads, fault)
                    reason = str(fault)
                missing = tuple(i for i in job.samples if i not in found[job.number])
                if missing and len(job.failed) == self.retries:
                    raise RolloutError(
                        f"prompt {prompt.id}: {len(missing)} samples are missing after {self.retries + 1} requests, the last "
                        f"because {reason}. Look at the servers' logs, or raise rollout.engine.retries."
                    )
                again = [missing] if missing == job.samples else [(i,) for i in missing]
                self.asked_again += len(missing)
                for samples in again if missing else []:
                    jobs.put_nowait(replace(job, samples=samples, failed=(*job.failed, server)))
                if len(found[job.number]) == num_samples:
                    come.put((job.number, in_order(found[job.number])))
                if all(len(samples) == num_samples for samples in found):
                    complete.set()

        width = max(1, min(math.ceil(len(prompts) / len(self.servers.every)), AT_ONCE // num_samples))
        tasks = [asyncio.ensure_future(lane(server)) for server in self.servers.every for _ in range(width)]
        tasks.append(asyncio.ensure_future(complete.wait()))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                one.result()
        finally:
            await cancelled(tasks)
        return [in_order(samples) for samples in found]

    async def _ask(
        self, server: Server, loads: list[str], job: Job, prompt: Prompt, sampling: Sampling, seed: int
    ) -> tuple[dict[int, Rollout], str]:
        """The job's samples that came back whole, and what is wrong with the others. Fault when none can be trusted."""
        stops, count, first = self.context.stop_ids, len(job.samples), job.samples[0]
        body = request(prompt.ids, sampling, count, seed, stops, "".join(loads))
        largest = (1 << 16) + BYTES_A_TOKEN * (len(prompt.ids) + sampling.max_tokens) * count
        vocabulary, samples, reason = len(self.servers.wanted.expected), {}, "the server left them out"
        for choice in await self.servers.choices(server, loads, body, largest):
            try:
                index, rollout = read_choice(prompt.id, choice, sampling.max_tokens, vocabulary, stops, self.version)
            except RolloutError as error:
                reason = str(error)
                continue
            if index < count:
                samples[first + index] = rollout
        return samples, reason

    def _run(self, work: Coroutine, meanwhile: Callable[[], None] | None = None) -> Any:
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            while meanwhile is not None and not wait([future], LOOK).done:
                meanwhile()
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _agreed(self, work: Callable[[], Any]) -> Any:
        """What `work` gives on the first rank, or its error, on every rank."""
        if not torch.distributed.is_initialized():
            return work()
        outcome: list[Any] = [None, None]
        if self.main:
            try:
                outcome[0] = work()
            except (LlmrlError, OSError) as error:
                outcome[1] = str(error)
        torch.distributed.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise RolloutError(outcome[1])
        return outcome[0]


def in_order(samples: dict[int, Rollout]) -> list[Rollout]:
    return [samples[i] for i in sorted(samples)]


def drained(queue: SimpleQueue) -> Iterator[Any]:
    """What is in the queue, without waiting for more."""
    while not queue.empty():
        yield queue.get()
