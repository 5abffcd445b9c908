"""What a reward model is fitted with on pairs: one loss a pair."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from llmrl.batch import Loss
from llmrl.config import NotNegative


def bradley_terry(
    chosen_end_scores: Tensor, rejected_end_scores: Tensor, chosen_margins: Tensor, *, centre_coef: NotNegative = 0.0
) -> Loss:
    """-log sigmoid(R_c - R_r - margin) + centre_coef (R_c + R_r)², R the score at an answer's last token.

    [P] each. Without a margin in the data it is the loss of arXiv:2203.02155, eq. 1; the margin is that of
    arXiv:2307.09288, eq. 2, the second term, which keeps scores near 0, that of arXiv:2312.09244 (0.01 is usual).
    """
    difference = chosen_end_scores.float() - rejected_end_scores.float()
    total = chosen_end_scores.float() + rejected_end_scores.float()
    loss = -logsigmoid(difference - chosen_margins.float())
    if centre_coef:
        loss = loss + centre_coef * total**2
    stats = {"pairs/accuracy": (difference > 0).float(), "pairs/margin": difference.detach()}
    return Loss(loss, unit="pair", stats=stats | {"pairs/score": 0.5 * total.detach()})
