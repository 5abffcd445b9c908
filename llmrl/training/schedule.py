"""The learning rate as a function of the step alone, so that a resumed run cannot be out of step."""

from __future__ import annotations

import math

from llmrl.config import Training


def learning_rate(config: Training, step: int, steps: int) -> float:
    """Rate of step `step` (from 0) of `steps`: linear warm-up, then constant, linear or cosine down to `final_share`, or
    the inverse square root of the steps, which is 1 where the warm-up ends.
    """
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    left = 1 - step / max(steps, 1)
    if config.schedule == "linear":
        share = max(config.final_share, left)
    elif config.schedule == "cosine":
        share = config.final_share + (1 - config.final_share) * 0.5 * (1 + math.cos(math.pi * (1 - left)))
    elif config.schedule == "inverse_sqrt":
        whole = max(config.warmup_steps, 1)
        share = math.sqrt(whole / max(step + 1, whole))
    else:
        share = 1.0
    return config.learning_rate * warm * share
