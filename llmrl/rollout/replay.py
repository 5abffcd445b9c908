"""An engine that writes nothing: it hands out the answers that came with the data."""

from __future__ import annotations

from collections.abc import Sequence

from llmrl.data.render import render_completion
from llmrl.errors import RolloutError
from llmrl.rollout.engine import Context, Weights
from llmrl.types import Prompt, Rollout, Sampling


class ReplayEngine:
    """Demonstrations, pairs and stored rollouts, token for token. Rollouts carry no log-probabilities."""

    replays = True  # it cannot answer a prompt of its own

    def __init__(self, context: Context):
        self.context = context

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, num_samples: int,
                 seeds: Sequence[int]) -> list[list[Rollout]]:
        """Every stored completion of each prompt, cut at `sampling.max_tokens`; num_samples and seeds are not used."""
        return [[self._replay(p, c, sampling.max_tokens) for c in self._stored(p)] for p in prompts]

    def sync(self, policy: Weights, version: int) -> None:
        """Stored answers do not follow the weights."""

    def close(self) -> None:
        """Nothing to give back."""

    def _stored(self, prompt: Prompt):
        if not prompt.completions:
            raise RolloutError(f"prompt {prompt.id} has no stored answer to replay; the replay engine needs data with a "
                               "completion, or chosen and rejected answers. Map the column in data.columns.")
        return prompt.completions

    def _replay(self, prompt: Prompt, completion, limit: int) -> Rollout:
        ids = render_completion(prompt, completion, self.context.tokenizer)
        return Rollout(tuple(ids[:limit]), completion.text, truncated=len(ids) > limit, stored=completion)
