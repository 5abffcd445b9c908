"""Online policy mirror descent: squared errors of a policy's own log-ratio against its rewards."""

from __future__ import annotations

import torch
from torch import Tensor

from llmrl.batch import Loss
from llmrl.config import NotNegative
from llmrl.ops.groups import group_sum
from llmrl.ops.masked import masked_sum


def opmd_kimi(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, loss_mask: Tensor, *, tau: NotNegative = 1.0
) -> Loss:
    """-Σ_t A logprobs + tau/2 (Σ_t logprobs - Σ_t old_logprobs)² of each answer (arXiv:2501.12599, section 2.3.2).

    [B,T] -> [B]. A is r - mean(r), which stands for the paper's r - tau log Z. The square keeps its gradient where A = 0.
    """
    logprobs, old_logprobs, advantages = (torch.where(loss_mask, x, 0.0) for x in (logprobs, old_logprobs, advantages))
    drift = (logprobs - old_logprobs).sum(1)
    credited = (advantages * logprobs).sum(1)
    return Loss(-credited + 0.5 * tau * drift**2, unit="sequence", stats={"ratio/log": drift.detach()})


def opmd_pairwise(
    logprobs: Tensor,
    old_logprobs: Tensor,
    rewards: Tensor,
    loss_mask: Tensor,
    group_ids: Tensor,
    *,
    tau: NotNegative = 1.0,
) -> Loss:
    """(1/K²) Σ_{i<j} (a_i - a_j)² of a prompt's K answers, a = r - tau Σ_t (logprobs - old_logprobs) (arXiv:2509.24203).

    [B,T], rewards and ids [B] -> each row's share (a_i - mean a)² / K; the shares add up to the sum over pairs. At the old
    policy its gradient is -(2 tau / K) Σ (r - mean r) ∇log p, whoever wrote the answers. Rows without a token stay out.
    """
    filled = loss_mask.any(1)
    a = rewards - tau * (masked_sum(logprobs, loss_mask, dim=1) - masked_sum(old_logprobs, loss_mask, dim=1))
    size = group_sum(filled.float(), group_ids).clamp(min=1)
    mean = group_sum(torch.where(filled, a, 0.0), group_ids) / size
    return Loss(torch.where(filled, (a - mean) ** 2 / size, 0.0), unit="group")


def opmd_simple(logprobs: Tensor, advantages: Tensor, *, tau: NotNegative = 1.0) -> Loss:
    """-A · logprobs / (1 + tau): REINFORCE, with a step that is the smaller the stronger the pull to the old policy. [B,T].

    The `opmd` of the code that accompanies arXiv:2509.24203: no ratio, no clip.
    """
    return Loss(-advantages * logprobs / (1 + tau))


opmd_kimi.needs_zero_advantage_rows = True  # the penalty on the drift holds them as well
