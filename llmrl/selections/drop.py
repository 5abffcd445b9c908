"""Rollouts that are scored and not trained on."""

from __future__ import annotations

from torch import Tensor

from llmrl.config import Natural
from llmrl.selections.selection import Selection


def drop_truncated(truncated: Tensor, loss_mask: Tensor) -> Selection:
    """Answers cut by the token limit leave the loss and stay in the statistics (DAPO, arXiv:2503.14476, section 3.4).

    truncated [B], loss_mask [B,T]. Their rewards count in the mean of their group: only their tokens are masked.
    """
    return Selection(loss_mask=loss_mask & ~truncated[:, None])


def drop_stale(staleness: Tensor, *, max_staleness: Natural = 1) -> Selection:
    """Drops rollouts written by weights more than `max_staleness` steps old (AReaL, arXiv:2505.24298). staleness [B]."""
    return Selection(staleness <= max_staleness)
