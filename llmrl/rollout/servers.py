"""The servers that sample for a run: which of them hold the weights that are wanted, and how one comes to hold them."""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmrl.errors import RolloutError
from llmrl.rollout.checks import refuse_gap
from llmrl.rollout.completions import read_choice, request
from llmrl.serving.client import START, Fault, ask_workers, client_of, post
from llmrl.serving.fleet import Fleet
from llmrl.types import Sampling

LOADS = 3  # of the same weights by one server that says that it cannot
SHORT_WAIT, LONG_WAIT = 0.1, 5.0  # seconds between two tries of a server that is out
PROBE = Sampling(max_tokens=1, temperature=0.7)  # at 1 a server that reports untempered numbers would pass
PROBES = 8  # samples


class Refused(Fault):
    """A server that says that it cannot load the weights."""


@dataclass(frozen=True)
class Wanted:
    """What servers are to hold: the weights `tag` in the file `path`.

    expected: [V] log-probabilities by the policy, at the probe's temperature, of what follows the tokens `probe`.
    """

    tag: str
    path: Path
    probe: tuple[int, ...]
    expected: Tensor
    architecture: str
    precision: str
    max_model_len: int


@dataclass(eq=False)
class Server:
    """A server as this process sees it.

    loads: what its workers drew as they loaded the weights that are wanted; None: it is not to be asked. failures: in a
    row. coming: gives it the weights.
    """

    url: str
    loads: list[str] | None = None
    trouble: str = "not reached yet"
    failures: int = 0
    coming: asyncio.Task | None = None


class Servers:
    """Servers under one token. Everything runs in one event loop.

    timeout: seconds for one request, and for which no server at all may be fit for use. heartbeat: for every other
    question, and between two of them while a request is under way. fleet: who starts them anew, if that is this process.
    """

    def __init__(self, urls: Sequence[str], token: str, *, timeout: float, heartbeat: float, fleet: Fleet | None):
        self.http = client_of(token)
        self.every = [Server(url) for url in urls]
        self.timeout, self.heartbeat, self.fleet = timeout, heartbeat, fleet
        self.wanted: Wanted | None = None

    async def want(self, wanted: Wanted) -> None:
        """From now on no server is asked until it holds these weights."""
        await self._halt()
        self.wanted = wanted
        for server in self.every:
            server.loads = None

    async def close(self) -> None:
        """Let go of every connection."""
        await self._halt()
        await self.http.aclose()

    async def _halt(self) -> None:
        await cancelled([server.coming for server in self.every if server.coming is not None])

    async def settle(self) -> None:
        """Return when one server holds what is wanted and the others do too, or took twice as long."""
        began = time.monotonic()
        tries = [asyncio.ensure_future(self.ready(server)) for server in self.every]
        try:
            done, rest = await asyncio.wait(tries, return_when=asyncio.FIRST_COMPLETED)
            if rest:
                done |= (await asyncio.wait(rest, timeout=time.monotonic() - began))[0]
            for one in done:
                one.result()
        finally:
            await cancelled(tries)

    async def ready(self, server: Server) -> None:
        """Return when the server holds what is wanted. RolloutError when no server does for too long."""
        while server.loads is None:
            if server.coming is None or server.coming.done():
                server.coming = asyncio.ensure_future(self._bring(server))
            # it goes on when no one waits any more: a server that comes back slowly would never be ready otherwise
            await asyncio.shield(server.coming)

    async def _bring(self, server: Server) -> None:
        began, refused = time.monotonic(), 0
        while server.loads is None:
            if server.failures:
                await asyncio.sleep(min(SHORT_WAIT * 2 ** min(server.failures - 1, 9), LONG_WAIT))
            try:
                server.loads = await self._bring_up(server)
                return
            except Fault as fault:
                server.trouble = str(fault)
                server.failures += 1
                refused += isinstance(fault, Refused)
            if not any(other.loads is not None for other in self.every):
                self._give_up(time.monotonic() - began, refused, server)

    def _give_up(self, seconds: float, refused: int, server: Server) -> None:
        """Raise RolloutError when waiting for a server is of no use any more."""
        if refused >= LOADS:
            raise RolloutError(server.trouble)
        if self.fleet is not None and len(self.fleet.failed) == len(self.every):
            raise RolloutError(self.fleet.failed[0])
        if seconds > self.timeout:
            every = "; ".join(f"{other.url}: {other.trouble}" for other in self.every)
            raise RolloutError(
                f"no server could be used for {self.timeout:g} s (rollout.engine.timeout): {every}. Look whether they run."
            )

    async def choices(self, server: Server, loads: list[str], body: dict[str, Any], largest: int) -> list[Any]:
        """The server's answer, all of it by the weights that it loaded as `loads`. Fault otherwise.

        largest: bytes of the answer.
        """
        asked = asyncio.ensure_future(self._complete(server, body, largest))
        try:
            while not (await asyncio.wait({asked}, timeout=self.heartbeat))[0]:
                await self._confirm(server, loads)
            found = asked.result()
            await self._confirm(server, loads)
        finally:
            await cancelled([asked])
        server.failures = 0
        return found

    def leave_out(self, server: Server, loads: list[str], fault: Fault) -> None:
        """Ask the server no more until it has confirmed its weights again; later news of an earlier failure are none."""
        if server.loads is loads:
            server.loads, server.trouble = None, str(fault)
            server.failures += 1
            warnings.warn(f"{fault}. It is left out until it holds the weights again.", stacklevel=2)

    async def _complete(self, server: Server, body: dict[str, Any], largest: int) -> list[Any]:
        url = f"{server.url}/v1/completions"
        found = await post(self.http, url, body, seconds=self.timeout, largest=largest)
        choices = found.get("choices") if isinstance(found, dict) else None
        if not isinstance(choices, list):
            raise Fault(f"{url} answered without choices")
        return choices

    async def _bring_up(self, server: Server) -> list[str]:
        """Have the server hold what is wanted; what its workers drew as they loaded it."""
        wanted = self.wanted
        states = await ask_workers(self.http, server.url, "llmrl_state", seconds=self.heartbeat)
        if any(state.get("version") != wanted.tag for state in states):
            # what runs there is of no use to anyone: its weights are about to change under it
            await post(self.http, f"{server.url}/pause?mode=abort", {}, seconds=self.heartbeat)
            given = (str(wanted.path), wanted.tag)
            states = await ask_workers(self.http, server.url, "llmrl_load", *given, seconds=self.heartbeat)
        errors = [state["error"] for state in states if "error" in state]
        if errors:
            raise Refused(
                f"{server.url} could not load the weights: {errors[0]}. A server on another machine needs "
                "rollout.engine.weights_folder, a folder that both reach under one name."
            )
        loads = [state.get("load") for state in states]
        if any(state.get("version") != wanted.tag for state in states) or not all(isinstance(n, str) for n in loads):
            found = ", ".join(str(state.get("version")) for state in states)
            raise Fault(f"{server.url} holds the weights {found}, expected {wanted.tag} in each of its workers")
        if any(state.get("max_model_len") < wanted.max_model_len for state in states):
            raise RolloutError(
                f"{server.url} takes {states[0]['max_model_len']} tokens, and the recipe's prompts and answers "
                f"{wanted.max_model_len} together. {START} Its option is --max-model-len {wanted.max_model_len}."
            )
        await post(self.http, f"{server.url}/resume", {}, seconds=self.heartbeat)
        await self._probe(server, loads, wanted)
        return loads

    async def _probe(self, server: Server, loads: list[str], wanted: Wanted) -> None:
        """Raise RolloutError unless what the server samples has the log-probabilities that the policy gives it."""
        choices = await self._complete(server, request(wanted.probe, PROBE, PROBES, 0, (), "".join(loads)), 1 << 20)
        try:
            rollouts = [read_choice("probe", choice, 1, len(wanted.expected), (), 0)[1] for choice in choices]
        except RolloutError as error:
            raise Fault(f"{server.url}: {error}") from None
        if len(rollouts) != PROBES:
            raise Fault(f"{server.url} gave {len(rollouts)} answers, asked for {PROBES}")
        expected = wanted.expected[torch.tensor([r.ids[0] for r in rollouts])]
        refuse_gap(expected, [r.logprobs[0] for r in rollouts], wanted.architecture, wanted.precision)

    async def _confirm(self, server: Server, loads: list[str]) -> None:
        """Fault unless the server's workers still hold what they loaded."""
        states = await ask_workers(self.http, server.url, "llmrl_state", seconds=self.heartbeat)
        if [state.get("load") for state in states] != loads:
            raise Fault(f"{server.url} was started anew or given other weights while it was asked")


async def cancelled(tasks: Sequence[asyncio.Future]) -> None:
    """Return when the tasks have ended, by being cancelled if need be."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
