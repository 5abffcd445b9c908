"""Regression of relative rewards."""

from __future__ import annotations

from torch import Tensor

from llmrl.batch import Loss
from llmrl.config import NotNegative


def rebel(
    chosen_seq_logprobs: Tensor,
    rejected_seq_logprobs: Tensor,
    chosen_old_seq_logprobs: Tensor,
    rejected_old_seq_logprobs: Tensor,
    chosen_rewards: Tensor,
    rejected_rewards: Tensor,
    *,
    eta: NotNegative = 1.0,
) -> Loss:
    """((d_1 - d_2) - eta (r_1 - r_2))², d = logprobs - old_logprobs summed over an answer (arXiv:2404.16767, eq. 1). [P] each.

    The paper divides by eta² and multiplies the reward difference by 1: the same up to that factor. eta · (r_1 - r_2)
    should stay between 1 and 10 in size. Two answers of equal reward are pulled to an equal change.
    """
    change = (chosen_seq_logprobs - chosen_old_seq_logprobs) - (rejected_seq_logprobs - rejected_old_seq_logprobs)
    wanted = eta * (chosen_rewards - rejected_rewards)
    stats = {"pairs/change": change.detach(), "pairs/wanted": wanted}
    return Loss((change - wanted) ** 2, unit="pair", stats=stats)
