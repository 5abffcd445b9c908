"""Reading what a judge says. Strict: what is not exactly a verdict is none, and never a zero."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

SHOWN = 200  # characters of a judge's text kept in the record
SECTION = re.compile(r"^#{2,4} *([A-Za-z -]{1,40}?) *\[([0-9a-f]{1,64})\] *:?[ \t]*$", re.MULTILINE)


class Unreadable(Exception):
    """The judge's text is no verdict, and why."""


def loads(text: str) -> Any:
    """JSON without NaN, infinities or repeated keys. Raises ValueError."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def json_object(content: str, nonce: str) -> dict[str, Any]:
    """The one JSON object that the text is, after reasoning and inside of a code fence at most; it repeats the nonce.

    Raises Unreadable.
    """
    text = spoken(content)
    if text.startswith("```") and text.endswith("```") and "\n" in text:
        text = text[text.index("\n") : -3]
    try:
        found = loads(text)
    except ValueError as error:
        raise Unreadable(f"expected one JSON object ({error}), found {text!r:.80}") from None
    if not isinstance(found, dict):
        raise Unreadable(f"expected a JSON object, found {text!r:.80}")
    if found.get("key") != nonce:
        raise Unreadable(f"the verdict's key is {found.get('key')!r:.40}, expected the one in the instructions")
    return found


def spoken(content: str) -> str:
    """What a judge says after it has thought."""
    return content.rpartition("</think>")[2].strip()


def whole_number(found: dict[str, Any], name: str, top: int) -> int:
    """A field that is a whole number from 0 to `top`. Raises Unreadable: nothing is rounded or clipped."""
    value = found.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= top:
        raise Unreadable(f"{name} is {value!r:.40}, expected a whole number from 0 to {top}")
    return value


def share(found: dict[str, Any], name: str) -> float:
    """A field that is a number from 0 to 1. Raises Unreadable."""
    value = found.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise Unreadable(f"{name} is {value!r:.40}, expected a number from 0 to 1")
    return float(value)


def one_of(found: dict[str, Any], name: str, words: tuple[str, ...]) -> str:
    """A field that is one of the words. Raises Unreadable."""
    value = found.get(name)
    if not isinstance(value, str) or value.strip().lower() not in words:
        raise Unreadable(f"{name} is {value!r:.40}, expected {' or '.join(words)}")
    return value.strip().lower()


def yes_share(choice: dict[str, Any], least: float = 0.5) -> tuple[float, float]:
    """(p(Yes) / (p(Yes) + p(No)), p(Yes) + p(No)) of the first token, its spellings summed: sigmoid(logit_Yes - logit_No).

    Raises Unreadable where the service gives no log-probabilities, or where both words together have less than `least`:
    then the judge was about to say something else.
    """
    match choice.get("logprobs"):
        case {"content": [{"top_logprobs": [*listed]}, *_]}:
            pass
        case _:
            raise Unreadable("the service gives no choices[0].logprobs.content[0].top_logprobs")
    mass = {"yes": 0.0, "no": 0.0}
    for one in listed:
        match one:
            case {"token": str(token), "logprob": int() | float() as logprob} if logprob <= 1e-3:
                word = token.strip(" \t\n▁Ġ").lower()
                if word in mass:
                    mass[word] += math.exp(logprob)
            case _:
                raise Unreadable(f"an entry of top_logprobs is {one!r:.80}")
    total = mass["yes"] + mass["no"]
    if total < least:
        first = [one["token"] for one in listed[:3]]
        raise Unreadable(f"Yes and No have {total:.2g} of the first token, expected {least:g}; it begins with {first}")
    return mass["yes"] / total, total


def sections(content: str, nonce: str, names: tuple[str, ...]) -> dict[str, str]:
    """The text under each heading '### <name> [<nonce>]'. Raises Unreadable unless each stands there once, with a text."""
    text = spoken(content)
    heads = [head for head in SECTION.finditer(text) if head.group(2) == nonce]
    found: dict[str, str] = {}
    ends = [*(head.start() for head in heads[1:]), len(text)]
    for head, end in zip(heads, ends, strict=False):
        name = head.group(1).lower()
        if name in found:
            raise Unreadable(f"the heading {name!r} stands there twice")
        found[name] = text[head.end() : end].strip()
    missing = [name for name in names if not found.get(name)]
    if missing or len(found) != len(names):
        raise Unreadable(f"expected the headings {', '.join(names)} with their key, found {', '.join(found) or 'none'}")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands there twice")
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is out of range")
    return number
