"""A cost for saying the same again."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from llmrl.ops.repetition import repeated


def repetition_penalty(
    rewards: Tensor,
    tokens: Tensor,
    loss_mask: Tensor,
    *,
    n: Annotated[int, Field(ge=1)] = 3,
    penalty: Annotated[float, Field(le=0)] = -1.0,
) -> Tensor:
    """r + penalty · (1 - distinct n-grams / n-grams) of the answer's counted tokens (arXiv:2502.03373, appendix C.2).

    rewards [B], tokens and loss_mask [B,T] -> [B]. Fewer than n tokens cost nothing.
    """
    answers = (row[mask].tolist() for row, mask in zip(tokens, loss_mask, strict=True))
    return rewards + penalty * rewards.new_tensor([repeated(answer, n) for answer in answers])
