"""An engine that writes nothing: it hands out the answers that came with the data."""

from __future__ import annotations

from collections.abc import Sequence

from llmrl.data.render import render_completion
from llmrl.data.steps import laid_on_written
from llmrl.rollout.engine import Context, Finished, Weights
from llmrl.types import Completion, Prompt, Rollout, Sampling


class ReplayEngine:
    """Demonstrations, pairs and stored rollouts, token for token. Rollouts carry no log-probabilities."""

    replays = True  # it cannot answer a prompt of its own

    def __init__(self, context: Context):
        self.context = context

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        num_samples: int,
        seeds: Sequence[int],
        finished: Finished | None = None,
    ) -> list[list[Rollout]]:
        """Every stored completion of each prompt, cut at `sampling.max_tokens`; num_samples and seeds are not used."""
        return [[self._replay(p, c, sampling.max_tokens) for c in p.completions] for p in prompts]

    def sync(self, policy: Weights, version: int) -> None:
        """Stored answers do not follow the weights."""

    def close(self) -> None:
        """Nothing to give back."""

    def _replay(self, prompt: Prompt, completion: Completion, limit: int) -> Rollout:
        ids = render_completion(prompt, completion, self.context.tokenizer)
        cut = len(ids) > limit
        laid = laid_on_written(prompt, completion, ids, self.context.tokenizer)
        return Rollout(
            tuple(ids[:limit]),
            "" if cut else completion.text,
            truncated=cut,
            stored=completion,
            step_labels=tuple((place, label) for place, label in laid if place < limit),
        )
