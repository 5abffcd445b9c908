"""Messages between the trainer and its scorers' processes: marshal towards the processes, JSON on the way back.

What comes back is data that hostile text may have shaped, so it is never unpickled.
"""

from __future__ import annotations

import datetime
import decimal
import marshal
import math
import socket
import struct
from collections import deque
from typing import Any

from llmrl.types import Completion, Group, Prompt, Rollout

HEADER = struct.Struct("!Q")
LARGEST = 256 * 1024**2  # bytes of one message


def send(connection: socket.socket, payload: bytes) -> None:
    connection.sendall(HEADER.pack(len(payload)) + payload)


class Inbox:
    """Cuts what a connection has delivered so far into messages. largest: bytes of one message that are allowed."""

    def __init__(self, largest: float = LARGEST):
        self.data = bytearray()
        self.largest = largest

    def feed(self, received: bytes) -> list[bytes]:
        """The messages that are complete now. ValueError for one that announces more than is allowed."""
        self.data += received
        found = []
        while len(self.data) >= HEADER.size:
            (size,) = HEADER.unpack_from(self.data)
            if size > self.largest:
                raise ValueError(f"a message of {size} bytes")
            if len(self.data) < HEADER.size + size:
                break
            found.append(bytes(self.data[HEADER.size : HEADER.size + size]))
            del self.data[: HEADER.size + size]
        return found


class Mail:
    """The messages of a blocking connection, for its reading end in a scorers' process."""

    def __init__(self, connection: socket.socket):
        self.connection = connection
        self.inbox = Inbox(math.inf)  # the trainer sends what it has
        self.messages: deque[bytes] = deque()

    def read(self) -> bool:
        """Take in what is there, waiting for some of it; False when the other side has closed the connection."""
        received = self.connection.recv(1 << 20)
        self.messages.extend(self.inbox.feed(received))
        return bool(received)

    def next(self) -> bytes | None:
        """The next message; None when the other side has closed the connection."""
        while not self.messages:
            if not self.read():
                return None
        return self.messages.popleft()


def packed_prompt(prompt: Prompt) -> tuple:
    """The prompt as plain data, without its tokens and stored answers. TypeError names a column that is not plain."""
    for name, value in {**prompt.columns, "reference": prompt.reference}.items():
        if not is_plain(value):
            raise TypeError(f"column {name} holds {type(value).__name__}; scorers get plain data: text, numbers, lists")
    return (
        prompt.id,
        prompt.messages,
        prompt.text,
        plain(prompt.reference),
        {name: plain(value) for name, value in prompt.columns.items()},
        prompt.feedback,
    )


def unpacked_prompt(fields: tuple) -> Prompt:
    id, messages, text, reference, columns, feedback = fields
    return Prompt(id, messages, text, reference=reference, columns=columns, feedback=feedback)


def packed_rollout(rollout: Rollout) -> tuple:
    """The rollout as plain data, without the sampler's log-probabilities."""
    stored = rollout.stored
    kept = stored and (stored.text, stored.messages, stored.label, stored.feedback, stored.score, stored.steps)
    return (rollout.ids, rollout.text, rollout.truncated, rollout.version, rollout.loss_mask, kept)


def unpacked_rollout(fields: tuple) -> Rollout:
    ids, text, truncated, version, loss_mask, stored = fields
    return Rollout(
        ids,
        text,
        truncated=truncated,
        version=version,
        loss_mask=loss_mask,
        stored=stored and Completion(*stored),
    )


def packed_groups(groups: list[tuple[Prompt, list[Rollout]]]) -> bytes:
    return marshal.dumps([(packed_prompt(p), [packed_rollout(r) for r in rollouts]) for p, rollouts in groups])


def unpacked_groups(data: bytes) -> list[Group]:
    return [
        Group(unpacked_prompt(prompt), tuple(unpacked_rollout(r) for r in rollouts))
        for prompt, rollouts in marshal.loads(data)  # noqa: S302 - written by the trainer, never by a scorer
    ]


def is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(is_plain(k) and is_plain(v) for k, v in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(is_plain, value))
    return value is None or isinstance(
        value, str | int | float | bytes | datetime.date | datetime.time | decimal.Decimal
    )


def plain(value: Any) -> Any:
    """The value with exact builtin types; dates and decimals become text."""
    if isinstance(value, dict):
        return {plain(k): plain(v) for k, v in value.items()}
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return kind(map(plain, value))
    if isinstance(value, datetime.date | datetime.time | decimal.Decimal):
        return str(value)
    for kind in (bool, str, int, float, bytes):
        if isinstance(value, kind):
            return kind(value)
    return value
