"""Log-probabilities and entropies of given tokens, a chunk of positions at a time: no [T,V] tensor outlives its chunk."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 1 << 22  # logits held at once; 16 MiB in fp32 stays near the processor's caches
KEPT_ELEMENTS = (
    1 << 24
)  # logits of one call that may wait for the backward pass, 64 MiB in fp32, instead of a second head


def token_statistics(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    labels: Tensor,
    temperatures: Tensor,
    vocabulary: int,
    entropy: bool,
) -> tuple[Tensor, Tensor | None]:
    """(logprobs [N], entropy [N] or None) of `labels` [N] under softmax(head(hidden) / temperatures), in fp32 and nats.

    hidden [N,H]; head maps [n,H] to logits [n,V]; gradients flow to hidden and to the head's own parameters. Of a
    large call the backward pass computes each chunk's logits again instead of keeping them.
    """
    rows = max(1, CHUNK_ELEMENTS // vocabulary)
    recompute = torch.is_grad_enabled() and len(labels) * vocabulary > KEPT_ELEMENTS
    parts = []
    for start in range(0, len(labels), rows):
        piece = (hidden[start : start + rows], labels[start : start + rows], temperatures[start : start + rows])
        if recompute:
            parts.append(checkpoint(_chunk, head, *piece, entropy, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(_chunk(head, *piece, entropy))
    if not parts:
        empty = hidden.float().sum(-1)
        return empty, empty if entropy else None
    logprobs = torch.cat([p[0] for p in parts])
    return logprobs, torch.cat([p[1] for p in parts]) if entropy else None


def _chunk(
    head: Callable[[Tensor], Tensor], hidden: Tensor, labels: Tensor, temperatures: Tensor, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    logits = head(hidden).float() / temperatures[:, None]
    log_normaliser = logits.logsumexp(-1)
    logprobs = logits.gather(-1, labels[:, None]).squeeze(-1) - log_normaliser
    if not entropy:
        return logprobs, None
    expected = ((logits - log_normaliser[:, None]).exp() * logits).sum(-1)
    return logprobs, log_normaliser - expected
