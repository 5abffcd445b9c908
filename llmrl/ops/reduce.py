"""The only place that averages. A reduction is one coefficient a row, worked out from the counts of the whole
mini-batch over all ranks, so the update does not depend on micro-batches, packing, padding or the number of ranks.

l is a per-token loss, L_i the counted tokens of row i, N the rows with L_i > 0 (arXiv:2503.20783 discusses the choice):
token_mean Σ l / Σ L_i · sequence_mean mean_i (Σ_t l / L_i) · sequence_sum mean_i Σ_t l · fixed_length Σ l / (B·C), B all
rows and C the longest answer allowed · group_mean mean over prompts of (Σ l / Σ L) within the prompt.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmrl.ops.groups import index


def row_coefficients(mode: str, lengths: Tensor, group_ids: Tensor, max_length: int) -> Tensor:
    """[B]: what each row's summed token loss is multiplied by. All arrays are those of the global mini-batch.

    lengths: counted tokens a row [B]; max_length: the constant C of fixed_length. Empty rows get 0.
    """
    counts = lengths.to(torch.float32)
    filled = counts > 0
    rows = filled.sum().clamp(min=1)
    safe = counts.clamp(min=1)
    if mode == "token_mean":
        coefficients = torch.ones_like(counts) / counts.sum().clamp(min=1)
    elif mode == "sequence_mean":
        coefficients = 1 / (rows * safe)
    elif mode == "sequence_sum":
        coefficients = torch.ones_like(counts) / rows
    elif mode == "fixed_length":
        coefficients = torch.full_like(counts, 1 / (max(len(counts), 1) * max_length))
    elif mode == "group_mean":
        place, sizes = index(group_ids)
        tokens = torch.zeros(len(sizes), device=counts.device).index_add_(0, place, counts)
        coefficients = (1 / ((tokens > 0).sum().clamp(min=1) * tokens.clamp(min=1)))[place]
    else:
        raise ValueError(f"no reduction named {mode!r}")
    return torch.where(filled, coefficients, torch.zeros_like(coefficients))


def reduce_tokens(values: Tensor, mask: Tensor, coefficients: Tensor, weights: Tensor | None = None) -> Tensor:
    """Scalar, fp32: Σ_i coefficient_i Σ_t mask·weight·value, [B,T] and [B]; the sum over micro-batches is the loss."""
    kept = torch.where(mask, values.float(), torch.zeros((), device=values.device))
    if weights is not None:
        kept = kept * torch.where(mask, weights, torch.zeros((), dtype=weights.dtype, device=weights.device))
    return (kept.sum(1) * coefficients).sum()


def reduce_units(values: Tensor, count: int) -> Tensor:
    """Scalar, fp32: Σ values / count, for losses of one number a sequence or a pair; count is the global one."""
    return values.float().sum() / max(count, 1)
