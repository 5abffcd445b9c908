"""Requests to one server: bounded in time and size, and its faults told apart from the caller's mistakes."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit

import httpx

from llmrl.errors import RecipeError, RolloutError

LONGEST_WORDS = 300  # characters of a server's own words in a message of ours
START = "Start it with `llmrl serve`, which adds what the trainer needs."


class Fault(Exception):
    """A server did not do what it was asked; another one, or the same one later, may."""


def client_of(token: str) -> httpx.AsyncClient:
    """For requests to servers that want this token; as many at once as there are."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.AsyncClient(headers=headers, timeout=None, limits=limits, trust_env=False)


async def post(http: httpx.AsyncClient, url: str, body: Any, *, seconds: float, largest: int = 1 << 20) -> Any:
    """What the server answers, read from JSON. seconds: for the whole of it. largest: bytes of an answer.

    Raises Fault for what may pass (no connection, no answer in time, a status of 500 on, half an answer), RolloutError for
    what will not: a wrong token, a route that the server lacks, a request that it refuses.
    """
    received = bytearray()
    try:
        async with asyncio.timeout(seconds), http.stream("POST", url, json=body) as answer:
            async for piece in answer.aiter_bytes():
                received += piece
                if len(received) > largest:
                    raise Fault(f"{url} answered more than {largest:,} bytes")
    except TimeoutError:
        raise Fault(f"{url} did not answer within {seconds:g} s") from None
    except httpx.HTTPError as error:
        raise Fault(f"{url}: {type(error).__name__}: {error}") from None
    if answer.status_code in (401, 403):
        raise RolloutError(
            f"{url} refuses the token. Set LLMRL_SERVER_TOKEN or rollout.engine.token_file to that of the server."
        )
    if answer.status_code in (404, 405):
        raise RolloutError(f"{url}: the server has no such route. {START}")
    if 400 <= answer.status_code < 500:
        raise RolloutError(f"{url} refuses a request: {words(received)}")
    if answer.status_code != 200:
        raise Fault(f"{url} answered {answer.status_code}: {words(received)}")
    try:
        return json.loads(received) if received else None
    except ValueError as error:
        raise Fault(f"{url} answered with something else than JSON: {error}") from None


async def ask_workers(http: httpx.AsyncClient, url: str, method: str, *args: str, seconds: float) -> list[dict]:
    """What each worker of the server says to a method of WeightsFromFile. Fault when it is not one mapping each."""
    body = {"method": method, "args": list(args)}
    found = await post(http, f"{url}/collective_rpc", body, seconds=seconds)
    results = found.get("results") if isinstance(found, dict) else None
    if not results or not all(isinstance(result, dict) for result in results):
        raise Fault(f"{url}: its workers answered {str(found)[:LONGEST_WORDS]!r} to {method}")
    return results


def words(text: bytes) -> str:
    """The start of what a server says, on one line and fit to be printed."""
    found = bytes(text[: 4 * LONGEST_WORDS]).decode(errors="replace")
    return "".join(c if c.isprintable() else " " for c in found)[:LONGEST_WORDS]


def base_url(url: str) -> str:
    """The URL less a slash at its end. RecipeError for anything but http(s)://host:port."""
    parts = urlsplit(url)
    rest = parts.path.rstrip("/") or parts.query or parts.fragment or parts.username or parts.password
    if parts.scheme not in ("http", "https") or not parts.hostname or rest:
        raise RecipeError(
            f"rollout.engine.urls: found {parts.hostname or url!r}; expected http://host:port, without a path, a user or "
            "a password. The token comes from LLMRL_SERVER_TOKEN or token_file."
        )
    return url.rstrip("/")
