"""What every fuzz test shares: how many inputs, how bytes and JSON are mutated, and what may come out."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from llmrl.errors import LlmrlError

TIMES = float(os.environ.get("FUZZ", "1"))  # `make fuzz` asks for more
SECONDS, MEGABYTES = 10.0, 512  # of CPU time and of new memory, for one input


def inputs(number: int) -> Callable:
    """That many examples, the same ones in every run unless more are asked for; a slow machine is no failure."""
    return settings(
        max_examples=max(1, int(number * TIMES)),
        derandomize=TIMES <= 1,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate),  # a smaller example is for whoever mends it
        print_blob=True,
    )


def survives(function: Callable[..., Any], *arguments: Any, allowed: tuple = ()) -> Any:
    """What the function gives; None where it raises an LlmrlError that says something. Any other end is the finding."""
    used, held = resource.getrusage(resource.RUSAGE_SELF), peak()
    try:
        return function(*arguments)
    except (LlmrlError, *allowed) as error:
        assert str(error).strip() and len(str(error)) < 20_000
        return None
    finally:
        now = resource.getrusage(resource.RUSAGE_SELF)
        assert now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime < SECONDS, "it took too long"
        assert peak() - held < MEGABYTES << 20, "it took too much memory"


def peak() -> int:
    """Bytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        [
            "",
            "\x00",
            "\ud800",
            "\u202e",
            "a" * 5000,
            "{",
            "{prompt}",
            "../../x",
            "NaN",
            "1e999",
            "-1",
            "null",
            "'\"",
            "<x>",
        ]
    ),
)
NUMBERS = st.one_of(
    st.integers(-3, 3), st.floats(), st.sampled_from([2**63, -(2**64), 10**400, 1e308, 5e-324, True, False, None])
)
PLAIN = st.recursive(
    TEXTS | NUMBERS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)


@st.composite
def damaged(draw: Callable, whole: bytes) -> bytes:
    """The bytes cut, doubled, overwritten, or with others put in; up to three of these."""
    for _ in range(draw(st.integers(1, 3))):
        at, size = draw(st.integers(0, len(whole))), draw(st.integers(0, 64))
        kind = draw(st.sampled_from(["cut", "insert", "overwrite", "remove", "repeat"]))
        more = draw(
            st.binary(max_size=16) | st.sampled_from([b"{", b"[" * 2000, b'"', b"\xff\xfe", b"null", b"9" * 5000])
        )
        if kind == "cut":
            whole = whole[:at]
        elif kind == "insert":
            whole = whole[:at] + more + whole[at:]
        elif kind == "overwrite":
            whole = whole[:at] + more + whole[at + len(more) :]
        elif kind == "remove":
            whole = whole[:at] + whole[at + size :]
        else:
            whole = whole[:at] + whole[at : at + size] * 20 + whole[at:]
    return whole


@st.composite
def changed(draw: Callable, value: Any) -> Any:
    """Plain data with up to three places replaced, removed or added to."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 3))):
        inner = value
        while isinstance(inner, dict | list) and inner:
            keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
            key = draw(st.sampled_from(keys))
            if not isinstance(inner[key], dict | list) or not inner[key] or draw(st.booleans()):
                kind = draw(st.sampled_from(["replace", "remove", "add"]))
                if kind == "remove":
                    del inner[key]
                elif kind == "replace":
                    inner[key] = draw(PLAIN)
                elif isinstance(inner, dict):
                    inner[draw(TEXTS)] = draw(PLAIN)
                else:
                    inner.append(draw(PLAIN))
                break
            inner = inner[key]
    return value
