"""How much of the response repeats itself?"""

from __future__ import annotations

import re
from typing import Literal

from llmrl.limits import limits
from llmrl.ops.repetition import repeated
from llmrl.types import Prompt, Rollout, Score

WORD = re.compile(r"\S+")


@limits(seconds=20, confined=True)
def repetition(
    prompt: Prompt, rollout: Rollout, *, n: int = 3, penalty: float = -1.0, unit: Literal["tokens", "words"] = "tokens"
) -> Score:
    """penalty x the share of n-grams that occurred before: 0.0 without repetition (arXiv:2502.03373, appendix C.2).

    penalty (1 - distinct n-grams / n-grams); 0.0 for fewer than n units. unit: 'tokens' as TRL counts, or 'words'
    between spaces in lower case as open-r1 does. Raises ValueError for n below 1 or a positive penalty.
    """
    if n < 1 or penalty > 0:
        raise ValueError(f"n is {n} and penalty {penalty}; expected n of at least 1 and a penalty of at most 0")
    units = rollout.ids if unit == "tokens" else [m.group() for m in WORD.finditer(rollout.text.lower())]
    share = repeated(units, n)
    feedback = f"{share:.0%} of the response repeats what it said before." if share >= 0.1 else None
    evidence = {"repeated": share, "n": n, "unit": unit, "num": len(units)}
    return Score(penalty * share if share else 0.0, feedback=feedback, evidence=evidence)
