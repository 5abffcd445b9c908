"""What stands before every route of a server: the token. Runs inside the server's process; standard library only."""

from __future__ import annotations

import hmac
import os
from collections.abc import Awaitable, Callable
from typing import Any

TOKEN = "LLMRL_SERVER_TOKEN"  # the environment variable that holds it: a command line is for everyone to read
REFUSED = b'{"error": "401: this server wants Authorization: Bearer and its token"}'


class Guard:
    """ASGI middleware. vLLM's own --api-key leaves every route outside /v1 open, the one that loads weights among them.

    Raises RuntimeError at the start of a server that was given no token.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]):
        token = os.environ.get(TOKEN, "")
        if not token:
            raise RuntimeError(f"{TOKEN} is not set: a server without a token would obey everyone.")
        self.app, self.expected = app, f"Bearer {token}".encode()

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        given = [value for name, value in scope.get("headers", ()) if name.lower() == b"authorization"]
        if len(given) == 1 and hmac.compare_digest(given[0], self.expected):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(REFUSED)).encode())]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": REFUSED})
