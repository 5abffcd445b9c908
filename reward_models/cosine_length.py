"""Right answers short, wrong ones long: a reward for correctness that depends on length."""

from __future__ import annotations

from dataclasses import replace

from llmrl.limits import limits
from llmrl.ops.lengths import cosine
from llmrl.types import Prompt, Rollout, Score
from reward_models.length import written
from reward_models.math_answer import math_answer
from reward_models.mathematics.protocols import DEFAULT, ProtocolName


@limits(**vars(math_answer.limits))
def cosine_length(
    prompt: Prompt,
    rollout: Rollout,
    *,
    max_tokens: int,
    right_short: float = 2.0,
    right_long: float = 1.0,
    wrong_short: float = -10.0,
    wrong_long: float = 0.0,
    exceeded: float = -10.0,
    protocol: ProtocolName = DEFAULT,
) -> Score:
    """The cosine reward: right answers earn more when short, wrong ones lose less when long (arXiv:2502.03373, section 4.2).

    right_short at no tokens, right_long at max_tokens and half a cosine wave between them, likewise wrong_*; `exceeded`
    from max_tokens on and for a response cut by the token limit, right or wrong. The defaults are the paper's. Whether
    the answer is right `math_answer` says, under the protocol; this scorer takes its place. Counts the tokens that the
    policy wrote. Raises ValueError for max_tokens below 1, and where math_answer does.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}; expected at least 1")
    judged, num = math_answer(prompt, rollout, protocol=protocol), written(rollout)
    at_zero, at_max = (right_short, right_long) if judged.value == 1.0 else (wrong_short, wrong_long)
    over = num >= max_tokens or rollout.truncated
    value = exceeded if over else cosine(num, max_tokens=max_tokens, at_zero=at_zero, at_max=at_max)
    feedback = f"{judged.feedback} The response is too long." if over else judged.feedback
    return replace(judged, value=value, feedback=feedback, evidence=judged.evidence | {"tokens": num, "exceeded": over})
