"""Feedback and scores that came with the data."""

from __future__ import annotations

from llmrl.types import Prompt, Rollout, Score


def stored_feedback(
    prompt: Prompt, rollout: Rollout, *, full_score: float = 10.0, unscored: float | None = None
) -> Score:
    """The feedback and score of the stored answer that was replayed; value = score / full_score, in [0, 1].

    unscored: the value of an answer stored without a score. Left at None such an answer has feedback but no value, and
    is dropped unless another scorer gives one. Raises ValueError for a rollout that was not replayed from feedback
    data, or for a score outside of [0, full_score].
    """
    if rollout.stored is None or rollout.stored.feedback is None:
        raise ValueError("the rollout has no stored feedback; use the replay engine on data with a feedback column")
    feedback, points = rollout.stored.feedback, rollout.stored.score
    if points is None:
        return Score(unscored, feedback=feedback)
    if not 0 <= points <= full_score:
        raise ValueError(f"stored score {points} is not in [0, {full_score:g}]; set full_score to the scale's top")
    return Score(points / full_score, feedback=feedback, evidence={"score": points})
