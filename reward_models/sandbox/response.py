"""The program in a response. Only looked at as text, line by line."""

from __future__ import annotations

import re

FENCE = "```"
LONGEST = 200_000  # characters of a program
STOPS = (
    "\nclass",
    "\ndef",
    "\n#",
    "\nif",
    "\nprint",
)  # where HumanEval cuts a completion (arXiv:2107.03374, section 2.1)
EXTRACTIONS = ("auto", "last_block", "first_block", "completion")


class Unreadable(Exception):
    """There is no program in the response; says why."""


def blocks(text: str) -> list[str]:
    """What stands between fences, in order; a block that is never closed ends with the text."""
    found: list[str] = []
    held: list[str] | None = None
    for line in text.split("\n"):
        if line.lstrip(" \t>").startswith(FENCE):
            if held is not None:
                found.append("\n".join(held))
            held = [] if held is None else None
        elif held is not None:
            held.append(line)
    return found + ([] if held is None else ["\n".join(held)])


def program(text: str, extraction: str, *, is_chat: bool) -> str:
    """The code of a response: its last or first fenced block, or all of it where it has none; or a completion cut short.

    'auto': the last block of an answer in a chat, a completion of a raw text. Raises Unreadable.
    """
    if extraction == "auto":
        extraction = "last_block" if is_chat else "completion"
    if extraction == "completion":
        code = text[: min([at for at in (text.find(stop) for stop in STOPS) if at >= 0], default=len(text))]
    else:
        found = blocks(text)
        code = (found[-1] if extraction == "last_block" else found[0]) if found else text
    if not code.strip():
        raise Unreadable("there is no code in the response")
    if len(code) > LONGEST:
        raise Unreadable(f"the code is longer than {LONGEST} characters")
    return code


def continued(stub: str, code: str, name: str) -> str:
    """A whole program: the given head, and the code either as what goes on from it or as a definition that replaces it."""
    defines = re.search(rf"^(?:async +)?def +{re.escape(name)}\b", code, re.MULTILINE)
    return f"{stub}\n{code}\n" if defines else f"{stub}{code}\n"
