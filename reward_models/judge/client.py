"""Asking a chat service for a verdict: retries, budgets, a circuit breaker, and each question asked once."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from llmrl.errors import RecipeError
from reward_models.judge.cache import VerdictCache
from reward_models.judge.service import Service, ServiceOptions, service_of
from reward_models.judge.verdicts import Unreadable, loads

LARGEST_ANSWER = 4 * 1024**2  # bytes
LONGEST_WAIT = 60.0  # seconds between two requests, unless the service asks for more
ASK_AGAIN = (408, 409, 425, 429)

Messages = list[dict[str, str]]


class JudgeError(Exception):
    """No verdict, and why. Never a score."""


class BudgetSpent(JudgeError):
    """The recipe's limit on calls or tokens is reached."""


class Failed(Exception):
    """One request failed. again: whether another may succeed. wait: seconds that the service asks for.

    broken: whether it speaks against the service, not against this question or the rate of questions.
    """

    def __init__(self, reason: str, *, again: bool = True, wait: float = 0.0, broken: bool = True):
        super().__init__(reason)
        self.again, self.wait, self.broken = again, wait, broken


@dataclass
class Cost:
    """What verdicts took: requests, those of them that repeated one, verdicts that were known already, tokens."""

    calls: int = 0
    retries: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))


@dataclass(frozen=True)
class Question:
    """What to ask. messages(nonce): the conversation. read(choice, nonce): the verdict as plain JSON, or Unreadable.

    protocol: names messages and read; another name where either changes, as cached verdicts are found by it.
    body: fields of the request besides the service's own.
    """

    protocol: str
    messages: Callable[[str], Messages]
    read: Callable[[dict[str, Any], str], dict[str, Any]]
    vote: int = 0
    body: tuple[tuple[str, Any], ...] = ()


class Client:
    """A service as this process has met it. `calls` and `tokens` count against its budgets."""

    def __init__(self, service: Service):
        self.service = service
        self.cache = VerdictCache(service.cache, service.cache_mb) if service.cache else None
        self.calls = self.tokens = 0
        self.failures, self.closed_until, self.last_failure = 0, 0.0, ""
        self.http: Any = None
        self.places: asyncio.Semaphore | None = None
        self.users = 0
        self.asking: dict[str, asyncio.Task[tuple[dict[str, Any], Cost]]] = {}

    async def ask(self, question: Question) -> tuple[dict[str, Any], Cost]:
        """The verdict and what it took. A question under way is not asked twice. Raises JudgeError."""
        key = self.key(question)
        if self.cache and (kept := self.cache.get(key)) is not None:
            return kept, Cost(cached=1)
        loop, shared = asyncio.get_running_loop(), self.asking.get(key)
        task = shared if shared and shared.get_loop() is loop else loop.create_task(self.fresh(question, key))
        if task is not shared:
            self.asking[key] = task
            task.add_done_callback(lambda _: self.asking.pop(key, None))
        try:
            verdict, cost = await asyncio.shield(task)
        except JudgeError as error:
            raise type(error)(*error.args) from None  # a traceback of its own for each who waits
        return verdict, Cost(cached=1) if task is shared else cost

    def key(self, question: Question) -> str:
        """Hash of what decides the verdict: model, messages, seed and sampling, without the nonce."""
        sampling = self.sampling(question, self.service.seed + question.vote)
        decides = [question.protocol, question.vote, self.service.model, question.messages(""), sampling]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    def sampling(self, question: Question, seed: int) -> dict[str, Any]:
        service = self.service
        fields = {"temperature": service.temperature, "max_tokens": service.max_tokens, "seed": seed}
        return {k: v for k, v in (fields | dict(question.body) | service.body).items() if v is not None}

    async def fresh(self, question: Question, key: str) -> tuple[dict[str, Any], Cost]:
        """A verdict by requests, up to `retries` of them after the first."""
        cost, token = Cost(), api_key(self.service.key_env)
        left = self.service.deadline
        async with self.connected():
            for attempt in range(self.service.retries + 1):
                nonce, seed, jitter = drawn(key, attempt, question)
                payload = {"model": self.service.model, "messages": question.messages(nonce)}
                payload |= self.sampling(question, seed)
                try:
                    async with self.places:
                        self.admit()
                        cost.calls, cost.retries = attempt + 1, attempt
                        began = time.monotonic()
                        choice = await self.request(payload, token, min(self.service.timeout, left), cost)
                    verdict = question.read(choice, nonce)
                except Unreadable as error:
                    failed = Failed(str(error))
                except Failed as error:
                    failed = error
                else:
                    if self.cache:
                        self.cache.put(key, verdict)
                    return verdict, cost
                backoff = min(self.service.backoff * 2**attempt, LONGEST_WAIT) * (0.5 + 0.5 * jitter)
                wait = max(backoff, failed.wait)
                left -= time.monotonic() - began + wait
                if not failed.again or attempt == self.service.retries or left <= 0:
                    break
                await asyncio.sleep(wait)
        late = f"; no time to ask again within {self.service.deadline:g} s" if failed.again and left <= 0 else ""
        raise JudgeError(f"no verdict after {cost.calls} call{'s' * (cost.calls > 1)}: {failed}{late}")

    def admit(self) -> None:
        """Count a request that is about to be made, or raise why none may be."""
        service, now = self.service, time.monotonic()
        for spent, budget, name in [
            (self.calls, service.call_budget, "call_budget"),
            (self.tokens, service.token_budget, "token_budget"),
        ]:
            if budget is not None and spent >= budget:
                raise BudgetSpent(f"service.{name} of {budget} is spent. Raise it, or train on fewer rollouts.")
        if self.failures >= service.breaker:
            if now < self.closed_until:
                raise JudgeError(
                    f"not asked: {self.failures} requests in a row failed, the last with: {self.last_failure}. "
                    f"Next try in {self.closed_until - now:.0f} s."
                )
            self.closed_until = now + service.pause  # this one request tries whether it is back
        self.calls += 1

    async def request(self, payload: dict[str, Any], token: str | None, seconds: float, cost: Cost) -> dict[str, Any]:
        """The first choice of the service's answer, its tokens counted. Raises Failed."""
        try:
            try:
                async with asyncio.timeout(seconds):
                    status, headers, body = await self.post(payload, token)
            except TimeoutError:
                raise Failed(f"no answer within {seconds:.3g} s") from None
            if status != 200:
                raise refusal(status, headers, body)
            answer = parsed(body)
            self.count(answer, cost)
            choice = choice_of(answer)
        except Failed as error:
            if error.broken:
                self.failures, self.last_failure = self.failures + 1, str(error)
                self.closed_until = time.monotonic() + self.service.pause
            raise
        self.failures = 0
        return choice

    async def post(self, payload: dict[str, Any], token: str | None) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body) with the key cut out of the body, should the service repeat it."""
        import httpx

        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        url, body = f"{self.service.url}/chat/completions", bytearray()
        try:
            async with self.http.stream("POST", url, content=json.dumps(payload).encode(), headers=headers) as response:
                async for piece in response.aiter_raw():
                    body += piece
                    if len(body) > LARGEST_ANSWER:
                        raise Failed(f"its answer is larger than {LARGEST_ANSWER} bytes")
        except httpx.HTTPError as error:
            raise Failed(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__) from None
        found = bytes(body)
        return response.status_code, dict(response.headers), found.replace(token.encode(), b"[key]") if token else found

    def count(self, answer: dict[str, Any], cost: Cost) -> None:
        """Add the tokens that the service says it took."""
        usage = answer.get("usage") if isinstance(answer.get("usage"), dict) else {}
        told = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in told):
            if self.service.token_budget is not None:
                raise Failed("it does not tell its usage, so service.token_budget cannot be kept", again=False)
            return
        cost.prompt_tokens += told[0]
        cost.completion_tokens += told[1]
        self.tokens += sum(told)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Connections of the running event loop, closed by the last who needs them."""
        import httpx

        if self.http is None:
            proxied = urlsplit(self.service.url).hostname not in ("127.0.0.1", "localhost", "::1")
            unlimited = httpx.Limits(max_connections=None)
            self.http = httpx.AsyncClient(timeout=None, limits=unlimited, trust_env=proxied)
            self.places, self.users = asyncio.Semaphore(self.service.concurrency), 0
        self.users += 1
        try:
            yield
        finally:
            self.users -= 1
            if self.users == 0:
                http, self.http = self.http, None
                await http.aclose()


def client_of(options: ServiceOptions) -> Client:
    """This process's client of a service. Raises RecipeError for wrong options."""
    return _client(json.dumps(options, sort_keys=True))


@functools.cache
def _client(options: str) -> Client:
    return Client(service_of(json.loads(options)))


async def ask_all(client: Client, questions: list[Question]) -> list[tuple[dict[str, Any], Cost] | JudgeError]:
    """Every verdict with its cost, or why there is none; asked at the same time."""
    answers = await asyncio.gather(*(client.ask(question) for question in questions), return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, JudgeError):
            raise answer
    return answers


def api_key(variable: str | None) -> str | None:
    """The key that the environment holds; it never stands in an error, a verdict or a file."""
    if variable is None:
        return None
    found = os.environ.get(variable, "").strip()
    if not found:
        raise RecipeError(f"service.key_env names {variable}, which the environment does not have. Export it.")
    if not found.isascii() or not found.isprintable() or " " in found:
        raise RecipeError(f"{variable} holds something else than a key: blanks, or characters outside of ASCII.")
    return found


def drawn(key: str, attempt: int, question: Question) -> tuple[str, int, float]:
    """(nonce, seed, jitter in [0, 1)) of a request, the same in every run.

    The nonce is a hash of the whole question. A text that holds its own nonce would be a fixed point of the hash, which
    nobody can write: so it needs no secret, and what is sent is the same in every run. That it is absent is still seen to.
    """
    text, salt = json.dumps(question.messages("")), 0
    while True:
        digest = hashlib.sha256(f"{key}:{attempt}:{salt}".encode()).hexdigest()
        if digest[:16] not in text:
            return digest[:16], int(digest[16:23], 16), int(digest[24:32], 16) / 2**32
        salt += 1


def refusal(status: int, headers: dict[str, str], body: bytes) -> Failed:
    """What an answer with another status than 200 means."""
    said = " ".join(body[:400].decode("utf-8", "replace").split())[:200]
    again = status in ASK_AGAIN or status >= 500
    prompt_only = status in (400, 413, 422)  # it refuses this question, such as one that is too long
    wait = retry_after(headers.get("retry-after", "")) if again else 0.0
    return Failed(f"status {status}: {said}", again=again, wait=wait, broken=status != 429 and not prompt_only)


def retry_after(header: str) -> float:
    """Seconds out of a Retry-After header: a number or a date; 0 for anything else."""
    if header.isascii() and header.isdigit():
        return float(header[:9])
    try:
        date = parsedate_to_datetime(header)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time())


def parsed(body: bytes) -> dict[str, Any]:
    """The body as a JSON object. Raises Failed."""
    try:
        answer = loads(body.decode())
    except ValueError as error:
        raise Failed(f"its answer is not JSON ({error}): {body[:80]!r}") from None
    if not isinstance(answer, dict):
        raise Failed(f"its answer is not a JSON object: {body[:80]!r}")
    return answer


def choice_of(answer: dict[str, Any]) -> dict[str, Any]:
    """choices[0], which holds a whole message. Raises Failed."""
    match answer:
        case {"choices": [{"message": {"content": str()}} as choice, *_]}:
            pass
        case _:
            raise Failed(f"its answer has no choices[0].message.content: {str(answer)[:80]}")
    reason = choice.get("finish_reason")
    if reason == "length":
        raise Failed("the judge's text was cut by service.max_tokens", broken=False)
    if reason == "content_filter":
        raise Failed("the service's content filter cut the judge's text", broken=False)
    return choice
