"""Does an answer know how sure it may be?"""

from __future__ import annotations

import re

from llmrl.limits import limits
from llmrl.types import Prompt, Rollout, Score
from reward_models.math_answer import math_answer
from reward_models.mathematics.protocols import DEFAULT, ProtocolName

NUMBER = re.compile(r"\s{0,9}(0|1|[01]?\.[0-9]{1,20})\s{0,9}")
WORST = -1.0  # also what a wrong answer earns that claims to be certain


@limits(seconds=3.0, memory_gb=0.5, confined=True, preload=("math_verify", "math_verify.grader", "math_verify.parser"))
def stated_confidence(
    prompt: Prompt, rollout: Rollout, *, tag: str = "confidence", protocol: ProtocolName = DEFAULT
) -> Score:
    """-(q - c)²: q stands in <confidence>q</confidence>, c is 1 for a right final answer and 0 for a wrong one.

    The Brier score, which is best where q is the probability of being right (arXiv:2602.10231, section 5.2). tag: of q,
    which is a number from 0 to 1 and stands exactly once; an answer without one earns -1. protocol: as for math_answer,
    whose reference it needs and whose errors it raises.
    """
    judged = math_answer(prompt, rollout, protocol=protocol)
    evidence = judged.evidence | {"confidence": None}
    stated = confidence(rollout.text, tag)
    if stated is None:
        wanted = f"Expected one number from 0 to 1 between <{tag}> and </{tag}>."
        return Score(WORST, feedback=f"{judged.feedback} {wanted}", evidence=evidence)
    feedback = f"{judged.feedback} The stated confidence is {stated:g}."
    return Score(-((stated - judged.value) ** 2), feedback=feedback, evidence=evidence | {"confidence": stated})


def confidence(text: str, tag: str) -> float | None:
    """The number between the tags; None unless it is one from 0 to 1 and both tags stand once."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    if text.count(opening) != 1 or text.count(closing) != 1:
        return None
    found = NUMBER.fullmatch(text.partition(opening)[2].partition(closing)[0])
    return float(found[1]) if found and float(found[1]) <= 1 else None
