"""The strict form: a response that ends with <answer>integer</answer>."""

from __future__ import annotations

import re

from llmrl.types import Prompt, Rollout, Score
from reward_models.math_answer import reference_answer

ENDING = re.compile(r"<answer>(-?[0-9]{1,30})</answer>\Z")
TAIL = 64  # characters; the longest match is shorter


def answer_tag(prompt: Prompt, rollout: Rollout) -> Score:
    """1.0 if the text ends with exactly <answer>N</answer> and N is prompt.reference, else 0.0.

    Raises ValueError when the reference is not an integer.
    """
    expected = int(reference_answer(prompt.reference).replace(",", ""))
    match = ENDING.search(rollout.text[-TAIL:])
    read = int(match.group(1)) if match else None
    return Score(float(read == expected), evidence={"read": read, "expected": expected, "correct": read == expected})
