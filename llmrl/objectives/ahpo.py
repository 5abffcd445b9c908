"""Imitation of an expert where the policy fails."""

from __future__ import annotations

from torch import Tensor

from llmrl.batch import Loss


def ahpo(logprobs: Tensor, advantages: Tensor) -> Loss:
    """-ξ logprobs of an expert's answer, ξ the gate of its prompt, in `advantages` (AHPO, arXiv:2510.08540). [B,T] each.

    Made for the second batch of method ahpo: extra rows get the gate as their advantages, and `sequence_mean` makes it the
    mean over prompts of ξ · NLL / |y|.
    """
    return Loss(-advantages * logprobs)
