"""The plain policy gradient."""

from __future__ import annotations

from torch import Tensor

from llmrl.batch import Loss


def reinforce(logprobs: Tensor, advantages: Tensor) -> Loss:
    """-A · logprobs, [B,T] (Williams 1992; arXiv:2402.14740 for language models).

    Reduced by sequence_sum it is the unbiased gradient of the mean reward of whole answers; token_mean weights long ones.
    """
    return Loss(-advantages * logprobs)
