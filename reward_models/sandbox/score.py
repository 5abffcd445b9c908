"""From a verdict to a Score, and from a prompt to the columns that a code scorer reads."""

from __future__ import annotations

from typing import Any, Literal

from llmrl.types import Prompt, Score
from reward_models.sandbox.judge import Verdict
from reward_models.sandbox.session import Limits

Extraction = Literal["auto", "last_block", "first_block", "completion"]
SHOWN = 200
LONGEST_RUN = 60.0  # seconds; a call of a scorer may take twice that


def scored(verdict: Verdict, protocol: str, *, fraction: bool) -> Score:
    """1.0 when every test passed, else 0.0; with `fraction` the share that passed. The feedback shows no test."""
    passed = verdict.passed == verdict.total
    value = verdict.passed / verdict.total if fraction else float(passed)
    if passed:
        feedback = "The code passes all tests."
    else:
        kind = "raises an exception in" if verdict.reason and "raised " in verdict.reason else "fails"
        feedback = f"The code {kind} the tests."
    evidence: dict[str, Any] = {
        "passed": verdict.passed,
        "total": verdict.total,
        "reason": verdict.reason and printable(verdict.reason),
        "seconds": verdict.seconds,
        "tier": verdict.tier,
        "protocol": protocol,
        "correct": passed,
    }
    return Score(value, feedback=feedback, evidence=evidence)


def unread(reason: str, protocol: str) -> Score:
    """0.0 for a response without a program."""
    return Score(
        0.0,
        feedback=f"{reason[:1].upper()}{reason[1:]}.",
        evidence={"reason": reason, "protocol": protocol, "correct": False},
    )


def printable(text: str) -> str:
    """At most 200 characters that any file can hold."""
    return text[:SHOWN].encode(errors="replace").decode()


def limits_of(timeout: float, memory_gb: float) -> Limits:
    """The limits of a run. Raises ValueError outside of what a sandbox can hold to."""
    if not 0 < timeout <= LONGEST_RUN:
        raise ValueError(f"timeout is {timeout:g} s; expected more than 0 and at most {LONGEST_RUN:g}")
    if not 0.05 <= memory_gb <= 64:
        raise ValueError(f"memory_gb is {memory_gb:g}; expected 0.05 to 64: the interpreter alone takes about 0.03")
    return Limits(timeout, memory_gb)


def text_of(prompt: Prompt, column: str) -> str:
    """A column that has to hold text. Raises ValueError."""
    value = prompt.columns.get(column)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(
            f"column {column} is {str(value)[:60]!r}; expected text. Columns: {', '.join(prompt.columns) or 'none'}"
        )
    return value
