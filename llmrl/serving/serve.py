"""`llmrl serve`: a fleet for trainers that run elsewhere, until it is stopped."""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Callable
from pathlib import Path

from llmrl.errors import LlmrlError, RolloutError
from llmrl.serving.fleet import Fleet, ServerOptions
from llmrl.serving.guard import TOKEN


def serve(options: ServerOptions, host: str, ports: list[int], folder: Path, say: Callable[[str], None]) -> None:
    """Run servers until interrupted or terminated; say where they are and what becomes of them.

    Raises RolloutError when one has died several times without ever having answered.
    """
    folder.mkdir(parents=True, exist_ok=True)
    token, where = server_token(folder)
    fleet = Fleet(options, ports, token, folder, host=host)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for number, url in enumerate(fleet.urls):
            say(f"server {number}: {url}, log {fleet.log(number)}")
        say(f"token: {where}")
        say(f"rollout.engine={{name: vllm_server, urls: [{', '.join(fleet.urls)}]}}")
        known: dict[int, str] = {}
        while not fleet.failed:
            for number, state in fleet.states().items():
                if known.get(number) != state:
                    say(f"server {number}: {state}")
                    known[number] = state
            time.sleep(0.5)
        raise RolloutError("\n".join(fleet.failed.values()))
    finally:
        fleet.close()


def server_token(folder: Path) -> tuple[str, str]:
    """(the token, where a trainer finds it): the environment's, or a new one in a file that only its owner reads."""
    if token := os.environ.get(TOKEN, ""):
        return token, f"the one in {TOKEN}"
    path, token = folder / "token", secrets.token_urlsafe(32)
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(token)
    return token, f"in {path}; rollout.engine.token_file={path}, or export {TOKEN}=$(cat {path})"


def ports_from(first: int, count: int) -> list[int]:
    """Consecutive ports. LlmrlError when there are not so many."""
    if not 1 <= first <= 65535 - count + 1:
        raise LlmrlError(
            f"--port {first}: found no room for {count} servers from there on; expected 1 to {65536 - count}."
        )
    return list(range(first, first + count))
