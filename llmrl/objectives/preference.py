"""Objectives on pairs of a chosen and a rejected answer: one loss a pair."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from llmrl.batch import Loss
from llmrl.config import NotNegative


def dpo(
    chosen_seq_logprobs: Tensor,
    rejected_seq_logprobs: Tensor,
    chosen_ref_seq_logprobs: Tensor,
    rejected_ref_seq_logprobs: Tensor,
    *,
    beta: NotNegative = 0.1,
) -> Loss:
    """-log sigmoid(beta h), h = (chosen - its reference) - (rejected - its reference) (arXiv:2305.18290, eq. 7).

    [P] each, sums over the answer's tokens. ln 2 for every pair while the policy is the reference.
    """
    chosen = beta * (chosen_seq_logprobs - chosen_ref_seq_logprobs)
    rejected = beta * (rejected_seq_logprobs - rejected_ref_seq_logprobs)
    margin = chosen - rejected
    stats = {
        "pairs/margin": margin.detach(),
        "pairs/accuracy": (margin > 0).float(),
        "pairs/chosen_reward": chosen.detach(),
        "pairs/rejected_reward": rejected.detach(),
    }
    return Loss(-logsigmoid(margin), unit="pair", stats=stats)
