"""How long is the response, in tokens that the policy wrote?"""

from __future__ import annotations

from llmrl.limits import limits
from llmrl.ops.lengths import overlong as overlong_penalty
from llmrl.types import Prompt, Rollout, Score


@limits(seconds=10, confined=True)
def length(prompt: Prompt, rollout: Rollout, *, max_tokens: int, min_tokens: int = 0) -> Score:
    """1.0 if the response has min_tokens to max_tokens tokens, both included, else 0.0.

    Counts the tokens that the policy wrote, the end-of-turn token among them. A response cut by the token limit has
    no length of its own and gets 0.0. Raises ValueError unless 0 <= min_tokens <= max_tokens.
    """
    if not 0 <= min_tokens <= max_tokens:
        raise ValueError(f"min_tokens is {min_tokens} and max_tokens {max_tokens}; expected 0 <= min <= max")
    num = written(rollout)
    inside = min_tokens <= num <= max_tokens and not rollout.truncated
    side = "within the limits" if inside else "too short" if num < min_tokens else "too long"
    evidence = {"tokens": num, "min_tokens": min_tokens, "max_tokens": max_tokens, "truncated": rollout.truncated}
    return Score(float(inside), feedback=f"The response is {side}.", evidence=evidence)


@limits(seconds=10, confined=True)
def overlong(prompt: Prompt, rollout: Rollout, *, max_tokens: int, buffer: int) -> Score:
    """DAPO's soft penalty for long responses, from 0.0 down to -1.0 (arXiv:2503.14476, eq. 13).

    0 up to max_tokens - buffer tokens, falling linearly to -1 at max_tokens, -1 beyond. Counts the tokens that the
    policy wrote. Raises ValueError unless 0 <= buffer <= max_tokens.
    """
    if not 0 <= buffer <= max_tokens:
        raise ValueError(f"buffer is {buffer} and max_tokens {max_tokens}; expected 0 <= buffer <= max_tokens")
    num = written(rollout)
    value = overlong_penalty(num, max_tokens=max_tokens, buffer=buffer)
    feedback = "The response is too long." if value < 0 else None
    return Score(value, feedback=feedback, evidence={"tokens": num, "max_tokens": max_tokens, "buffer": buffer})


def written(rollout: Rollout) -> int:
    """Tokens that the policy wrote itself: tool output does not count."""
    return len(rollout.ids) if rollout.loss_mask is None else sum(rollout.loss_mask)
