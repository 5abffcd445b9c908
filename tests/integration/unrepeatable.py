"""An engine that never says the same twice: what it samples hangs on an environment variable, as on a server's mood."""

from __future__ import annotations

import os

from llmrl.rollout.transformers import TransformersEngine


class Unrepeatable(TransformersEngine):
    """The seeds that it is given are not all that counts."""

    def generate(self, prompts, sampling, num_samples, seeds, finished=None):
        return super().generate(prompts, sampling, num_samples, [s + int(os.environ["MOOD"]) for s in seeds], finished)
