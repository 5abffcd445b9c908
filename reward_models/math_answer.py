"""Is the final answer right?"""

from __future__ import annotations

from typing import Any

from llmrl.types import Prompt, Rollout, Score
from reward_models.equivalence import equivalent
from reward_models.extraction import final_answer

SHOWN = 200  # characters of an answer kept in the record


def math_answer(prompt: Prompt, rollout: Rollout, *, boxed_only: bool = False, last_number: bool = False) -> Score:
    """1.0 if the final answer equals prompt.reference, else 0.0.

    boxed_only: read \\boxed{} alone. last_number: without any mark, read the last number in the text. The feedback
    says what was read and whether it is right, never what would have been.
    Raises ValueError when the prompt has no reference.
    """
    expected = reference_answer(prompt.reference)
    found = final_answer(rollout.text, boxed_only=boxed_only, last_number=last_number)
    evidence = {"read": found and found.text[:SHOWN], "expected": expected, "how": found and found.how}
    if found is None:
        marked = "no \\boxed{...} answer" if boxed_only else "no final answer"
        return Score(0.0, feedback=f"There is {marked} in the response.", evidence=evidence | {"correct": False})
    correct = equivalent(found.text, expected)
    feedback = f"The final answer {evidence['read']} is {'correct' if correct else 'wrong'}."
    return Score(float(correct), feedback=feedback, evidence=evidence | {"correct": correct})


def reference_answer(reference: Any) -> str:
    """The answer in a reference: a number, a string, or a worked solution that ends with '#### answer'."""
    if isinstance(reference, bool) or not isinstance(reference, str | int | float):
        raise ValueError(f"reference is {reference!r}; expected a string or a number. Map it: data.columns.reference")
    return str(reference).rpartition("####")[2].strip()
