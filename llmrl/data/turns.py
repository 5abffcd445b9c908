"""Turns of a conversation: checked, split into prompt and answer, read out of dialogue strings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from llmrl.errors import DataError
from llmrl.types import Completion, Message

HH_START = "\n\nHuman:"
HH_TURN = re.compile(r"\n\n(Human|Assistant):")
HH_ROLES = {"Human": "user", "Assistant": "assistant"}
Turns = tuple[Message, ...]


def to_turns(value: Any, name: str) -> Turns:
    """A column of messages, checked: a list of {role, content}, all text. Keys without a value are left out."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise DataError(f"{name} is {value!r:.60}; expected a list of messages.")
    for message in value:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise DataError(f"{name}: a message is {message!r:.60}; expected {{role: ..., content: ...}}.")
        if message["content"] is None or not all(isinstance(item, str | None) for item in message.values()):
            raise DataError(f"{name}: {message!r:.80} is not text only; tool calls and images are not supported.")
    return tuple({key: item for key, item in message.items() if item is not None} for message in value)


def split_last(turns: Turns, name: str, *, label: str | None = None) -> tuple[Turns, Completion]:
    """(the turns before the last, the last as a completion). DataError unless it is the assistant's, after another."""
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise DataError(
            f"{name} has the turns {', '.join(m['role'] for m in turns)}; the last has to be the assistant's, after at "
            f"least one other. Prompts without an answer go by data.columns: {{prompt: {name}}}."
        )
    return turns[:-1], Completion(turns[-1]["content"], turns[-1:], label)


def dialogue(text: str) -> Turns:
    """The turns of a dialogue string of Anthropic's HH, '\\n\\nHuman: ...\\n\\nAssistant: ...' (arXiv:2204.05862)."""
    parts = HH_TURN.split(text)[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return tuple({"role": HH_ROLES[role], "content": content.strip()} for role, content in pairs)


def shared(chosen: Sequence[Any], rejected: Sequence[Any]) -> int:
    """How many leading turns, or characters of text, two answers share: their prompt, by the rule of TRL.

    Something is left for both answers, and a space between prompt and answers goes to the answers.
    """
    short = min(len(chosen), len(rejected))
    size = next((i for i in range(short) if chosen[i] != rejected[i]), max(short - 1, 0))
    return size - 1 if size > 0 and chosen[size - 1] == " " else size
