"""An engine that answers by a rule, for tests and for trying a recipe without sampling."""

from __future__ import annotations

from collections.abc import Sequence

from llmrl.rollout.engine import Context, Finished, Weights
from llmrl.types import Prompt, Rollout, Sampling


class ScriptedEngine:
    """Answers i, i+1, … of `answers` in turn, the same for every prompt; log-probabilities are those it is told."""

    own_weights = True  # none, which is as good

    def __init__(self, context: Context, *, answers: list[str], logprob: float = -1.0):
        self.context = context
        self.answers = answers
        self.logprob = logprob
        self.version = 0

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        num_samples: int,
        seeds: Sequence[int],
        finished: Finished | None = None,
    ) -> list[list[Rollout]]:
        return [
            [self._answer(self.answers[i % len(self.answers)], sampling) for i in range(num_samples)] for _ in prompts
        ]

    def sync(self, policy: Weights, version: int) -> None:
        self.version = version

    def close(self) -> None:
        """Nothing to give back."""

    def _answer(self, text: str, sampling: Sampling) -> Rollout:
        ids = (*self.context.tokenizer(text, add_special_tokens=False)["input_ids"], self.context.stop_ids[0])
        kept = ids[: sampling.max_tokens]
        return Rollout(kept, "", (self.logprob,) * len(kept), len(kept) < len(ids), self.version)
