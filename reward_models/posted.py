"""What a service answers to JSON, bounded in time and size: it may be anyone's."""

from __future__ import annotations

import asyncio
import json
from typing import Any


def posted(url: str, body: Any, *, seconds: float, largest: int, proxied: bool = False) -> Any:
    """The answer, read from JSON. seconds: until its last byte is here. largest: its bytes. proxied: whether the
    environment's proxies are used.

    Raises TimeoutError, ValueError for an address that is none, an answer that is too large or no JSON, httpx.HTTPError for
    every other trouble.
    Not for a thread in which an event loop runs.
    """
    return asyncio.run(_posted(url, body, seconds, largest, proxied))


async def _posted(url: str, body: Any, seconds: float, largest: int, proxied: bool) -> Any:
    import httpx

    received = bytearray()
    transport = None if proxied else httpx.AsyncHTTPTransport(retries=2)
    # no compression: a small answer would unfold into one of any size
    plain = {"Accept-Encoding": "identity"}
    try:
        async with (
            asyncio.timeout(seconds),
            httpx.AsyncClient(timeout=None, transport=transport, trust_env=proxied) as http,
            http.stream("POST", url, json=body, headers=plain) as answer,
        ):
            async for piece in answer.aiter_raw():
                received += piece
                if len(received) > largest:
                    raise ValueError(f"{url} answered more than {largest:,} bytes, the most that is read")
    except (httpx.InvalidURL, ImportError) as error:  # a proxy of a kind that httpx has no package for
        raise ValueError(f"{url}, or the proxy of the environment: {error}") from error
    except TimeoutError:
        raise TimeoutError(f"{url} has not answered within {seconds:g} s") from None
    answer.raise_for_status()
    try:
        return json.loads(received)
    except RecursionError:
        raise ValueError(f"{url} answered JSON that is nested too deeply") from None
