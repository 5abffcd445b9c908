"""Conditioning on verbal feedback: which feedback a prompt carries while sampling, and which while training."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any, Literal

from llmrl.errors import RecipeError
from llmrl.types import Group, Prompt, Score

LENGTH_WORDS = re.compile(
    r"\b(?:concise|succinct|brief|short|long|verbose|terse|compact)(?:ly|er|est|ness)?\b"
    r"|\b(?:brevity|concision|verbosity|verbosely|length|lengthy|lengths|word(?:y|iness)|wordily|rambl\w*|laconic\w*)\b",
    re.IGNORECASE,
)
State = dict[str, Any]


class Feedback:
    """Sample under positive feedback, train each answer under the feedback that it earned (arXiv:2509.22638).

    The state is {"pool": positive feedback, newest last}. Crediting an answer to its fresh feedback, not to what it was
    sampled under, makes likelihood training fit the posterior p(answer | prompt, feedback).

    positive: a fixed pool; None lets the pool grow out of feedback whose value is at least `min_score` and whose
    evidence does not say that the answer is wrong. drop_length_words: feedback on length stays out, as answers shrink
    round by round when it is asked for. relabel False trains under the sampling condition: the ablation.
    Raises RecipeError when `positive` itself speaks of length.
    """

    def __init__(
        self,
        *,
        positive: list[str] | None = None,
        min_score: float = 0.9,
        drop_length_words: bool = True,
        pool_size: int = 256,
        relabel: bool = True,
        sample_under: Literal["nothing", "positive"] = "positive",
    ):
        for text in positive or []:
            if drop_length_words and LENGTH_WORDS.search(text):
                raise RecipeError(
                    f"feedback.positive holds {text!r}, which speaks of length: answers shrink when it is asked for. "
                    "Word it otherwise, or set drop_length_words: false."
                )
        self.positive = positive
        self.min_score = min_score
        self.drop_length_words = drop_length_words
        self.pool_size = pool_size
        self.relabel = relabel
        self.sample_under = sample_under

    def init(self, previous: State | None = None) -> State:
        """The pool before the first step: the fixed one, or what an earlier stage has gathered."""
        return {"pool": list(self.positive or (previous or {}).get("pool", []))}

    def refine(self, state: State, prompts: Sequence[Prompt], seed: int) -> list[Prompt]:
        """The prompts to sample from, each under one feedback drawn from the pool by (seed, prompt id).

        Without a condition where the pool is still empty or `sample_under` is 'nothing'. A prompt whose condition
        changes has to be rendered again.
        """
        pool = state["pool"] if self.sample_under == "positive" else []
        conditions = [random.Random(f"{seed}:{p.id}").choice(pool) if pool else None for p in prompts]
        return [p if p.feedback == c else p.conditioned(c) for p, c in zip(prompts, conditions, strict=True)]

    def apply(self, state: State, groups: Sequence[Group]) -> tuple[list[list[Prompt | None]], State]:
        """(each rollout's prompt to train under, None to drop it for want of feedback; the state with its new pool)."""
        scores = [[spoken(by_name) for by_name in group.scores] for group in groups]
        training = [
            [None if one is None else self.trained_under(group.prompt, one) for one in row]
            for group, row in zip(groups, scores, strict=True)
        ]
        if self.positive is not None:
            return training, state
        gained = [one.feedback for row in scores for one in row if one is not None and self.is_positive(one)]
        newest_first = dict.fromkeys(reversed([*state["pool"], *gained]))
        return training, {"pool": list(newest_first)[: self.pool_size][::-1]}

    def trained_under(self, prompt: Prompt, score: Score) -> Prompt:
        """The training prompt of a rollout with this feedback."""
        return prompt.conditioned(score.feedback) if self.relabel else prompt

    def is_positive(self, score: Score) -> bool:
        """Whether the feedback may be asked for while sampling."""
        if score.value is None or score.value < self.min_score or not score.evidence.get("correct", True):
            return False
        return not (self.drop_length_words and LENGTH_WORDS.search(score.feedback))


def spoken(scores: dict[str, Score]) -> Score | None:
    """The first scorer's Score that says something in words."""
    return next((one for one in scores.values() if one.feedback and one.feedback.strip()), None)
