"""What is read off next-token distributions, a chunk of positions at a time: no [T,V] tensor outlives its chunk."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from llmrl.ops.projected import Projection, projected_statistics

Head = Callable[[Tensor], Tensor]  # from hidden states [n,H] to logits [n,V]
CHUNK_ELEMENTS = 1 << 22  # logits held at once; 16 MiB in fp32 stays near the processor's caches
LEAST_ROWS = 128  # of a chunk under however many words: each chunk writes a gradient of the head's whole matrix
KEPT_ELEMENTS = 1 << 24  # logits of one call that may wait for the backward pass, 64 MiB in fp32, not made again


def token_statistics(
    hidden: Tensor,
    head: Head | Projection,
    labels: Tensor,
    temperatures: Tensor,
    vocabulary: int,
    entropy: bool,
) -> tuple[Tensor, Tensor | None]:
    """(logprobs [N], entropy [N] or None) of `labels` [N] under softmax(head(hidden) / temperatures), in fp32 and nats.

    hidden [N,H]; head maps [n,H] to logits [n,V]; gradients flow to hidden and to the head's own parameters. Of a
    large call the backward pass computes each chunk's logits again instead of keeping them. A Projection takes a third
    less time and writes the gradient of its matrix once in all, any other head once a chunk.
    """
    if isinstance(head, Projection):
        return projected_statistics(hidden, head, labels, temperatures, entropy, CHUNK_ELEMENTS, KEPT_ELEMENTS)
    function = partial(_tokens, head, entropy)
    found = _in_chunks(function, (hidden, labels, temperatures), vocabulary)
    return found[0], found[1] if entropy else None


def kl_statistics(
    hidden: Tensor,
    head: Head,
    other_hidden: Tensor,
    other_head: Head,
    temperatures: Tensor,
    vocabulary: int,
    direction: Literal["reverse", "forward"],
) -> Tensor:
    """Divergence [N] over the whole vocabulary between a policy and another that is only looked at, in fp32 and nats.

    p = softmax(head(hidden) / temperatures), q = softmax(other_head(other_hidden) / temperatures)
    reverse: KL(p||q) = sum p (log p - log q)      forward: KL(q||p) = sum q (log q - log p)
    hidden, other_hidden [N,H]. Gradients, also second ones, flow to hidden and head alone; equal logits give exactly 0
    and the gradient 0. Chunked like `token_statistics`.
    """
    function = partial(_divergences, head, other_head, direction == "forward")
    return _in_chunks(function, (hidden, other_hidden, temperatures), vocabulary)[0]


def action_statistics(
    hidden: Tensor, head: Head, critic: Head, labels: Tensor, temperatures: Tensor, vocabulary: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(q of `labels` [N], V [N], sum over tokens of p · (q - V) [N]) of a critic with a value for every token.

    p = softmax(head(hidden) / temperatures), q = critic(hidden), V = sum p q. Gradients: of the first through q, of the
    last through p alone, of V none. The last one's value is 0 up to rounding; its gradient is the exact policy gradient.
    """
    function = partial(_actions, head, critic)
    return _in_chunks(function, (hidden, labels, temperatures), vocabulary)


def _in_chunks(function: Callable[..., tuple], given: tuple[Tensor, ...], vocabulary: int) -> tuple[Any, ...]:
    """What the function gives for all rows of the tensors given, some rows at a time."""
    count = len(given[0])
    rows = max(LEAST_ROWS, CHUNK_ELEMENTS // vocabulary)
    recompute = torch.is_grad_enabled() and count * vocabulary > KEPT_ELEMENTS
    parts = []
    for start in range(0, max(count, 1), rows):
        piece = [tensor[start : start + rows] for tensor in given]
        if recompute:
            parts.append(checkpoint(function, *piece, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(function(*piece))
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _tokens(head: Head, entropy: bool, hidden: Tensor, labels: Tensor, temperatures: Tensor) -> tuple[Tensor, ...]:
    logits = head(hidden).float() / temperatures[:, None]
    log_normaliser = logits.logsumexp(-1)
    logprobs = logits.gather(-1, labels[:, None]).squeeze(-1) - log_normaliser
    if not entropy:
        return (logprobs,)
    expected = ((logits - log_normaliser[:, None]).exp() * logits).sum(-1)
    return logprobs, log_normaliser - expected


def _divergences(
    head: Head, other_head: Head, forward: bool, hidden: Tensor, other_hidden: Tensor, temperatures: Tensor
) -> tuple[Tensor]:
    with torch.no_grad():
        other = other_head(other_hidden).float() / temperatures[:, None]
    return (_Divergence.apply(head(hidden).float() / temperatures[:, None], other, forward),)


class _Divergence(torch.autograd.Function):
    """KL between the softmax of two logits [n,V]; differences of equal numbers stay exactly 0 in the gradient, too."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, other: Tensor, forward: bool) -> Tensor:
        ctx.save_for_backward(logits, other)
        ctx.forward_kl = forward
        p, q = logits.log_softmax(-1), other.log_softmax(-1)
        return (q.exp() * (q - p)).sum(-1) if forward else (p.exp() * (p - q)).sum(-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits, other = ctx.saved_tensors
        p, q = logits.log_softmax(-1), other.log_softmax(-1)
        if ctx.forward_kl:
            slope = p.exp() - q.exp()
        else:
            slope = p.exp() * (p - q - (p.exp() * (p - q)).sum(-1, keepdim=True))
        return grad[:, None] * slope, None, None


def _actions(
    head: Head, critic: Head, hidden: Tensor, labels: Tensor, temperatures: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    spread = (head(hidden).float() / temperatures[:, None]).softmax(-1)
    taken = critic(hidden)
    fixed = taken.detach()
    mean = (spread.detach() * fixed).sum(-1)
    advantage = (spread * (fixed - mean[:, None])).sum(-1)
    return taken.gather(-1, labels[:, None]).squeeze(-1), mean, advantage
