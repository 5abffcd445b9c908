"""vLLM's part in drawing tokens on a CPU: the transformers engine's own noise, one number a token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmrl.rollout.draw import inverted


class Draws:
    """In place of vLLM's CPU sampler, which draws an exponential number for each word of the vocabulary, twice.

    A sample's seed is its row of `noise`. Drawn by position and not from a stream, its tokens stay the same when vLLM
    interrupts it.
    """

    def __init__(self, sampler: Any):
        self.noise, self.drawn = torch.empty(0, 0), [0]
        sampler.topk_topp_sampler.forward = self.draw

    def begin(self, noise: Tensor) -> None:
        """noise: [rows,T] float64 in [0,1), of the samples of the next call."""
        self.noise, self.drawn = noise, [0] * len(noise)

    def draw(
        self, logits: Tensor, generators: dict[int, torch.Generator], k: Tensor | None, p: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(tokens [n], log-probabilities [n,V]) of logits [n,V]; what vLLM's TopKTopPSampler does for its callers."""
        from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

        logprobs = apply_top_k_top_p(logits, k, p).log_softmax(-1, dtype=torch.float32)
        rows = [generators[row].initial_seed() for row in range(len(logits))]
        noise = self.noise[rows, [self.drawn[row] for row in rows]]
        for row in rows:
            self.drawn[row] += 1
        return inverted(logprobs.exp(), noise), logprobs
