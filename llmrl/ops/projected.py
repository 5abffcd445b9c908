"""Log-probabilities and entropies straight from hidden states and the output layer's matrix, a tile of logits at a time.

One tile covers some tokens and some words. Forward keeps the log-normaliser of each token alone; backward makes a tile
again, turns it into its own gradient where it stands, and adds its two products to the gradients of states and matrix.
So the matrix's gradient is written once in all, not once a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmrl.ops.linear import faster, linear

WORDS = 4096  # of a tile: tall tiles read and write fewer rows of the matrix and of its gradient


@dataclass(frozen=True)
class Projection:
    """An output layer that is nothing but a matrix: logits are hidden · weightᵀ · scale, then cap · tanh(logits / cap).

    weight [V,H]; cap None: without the second step.
    """

    weight: Tensor
    scale: float = 1.0
    cap: float | None = None


def projected_statistics(
    hidden: Tensor,
    projection: Projection,
    labels: Tensor,
    temperatures: Tensor,
    entropy: bool,
    elements: int,
    kept: int,
) -> tuple[Tensor, Tensor | None]:
    """What `token_statistics` gives for a head that is a Projection: (logprobs [N], entropy [N] or None), once differentiable.

    elements: of a tile. kept: all logits of a call that has no more than these wait for the backward pass.
    """
    weight, scale, cap = projection.weight, projection.scale, projection.cap
    # scaling the states is cheaper than scaling the logits, which a cap alone must see untempered
    states = hidden * (scale / temperatures[:, None] if cap is None else scale)
    found = _Statistics.apply(states, weight, labels, temperatures, cap, entropy, elements, kept)
    return found if entropy else (found, None)


class _Statistics(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        labels: Tensor,
        temperatures: Tensor,
        cap: float | None,
        entropy: bool,
        elements: int,
        kept: int,
    ) -> Any:
        device = states.device.type
        ctx.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        ctx.cap, ctx.logits = cap, []
        ctx.set_materialize_grads(False)
        count, vocabulary = len(states), len(weight)
        keep = any(ctx.needs_input_grad) and count * vocabulary <= kept
        ctx.tiles = list(tiles(count, vocabulary, elements, whole=ctx.dtype != torch.float32))
        highest = states.new_full((count,), -torch.inf, dtype=torch.float32)
        total, expected, chosen = (torch.zeros_like(highest) for _ in range(3))
        with torch.autocast(device, enabled=False):
            for rows, words in ctx.tiles:
                logits = product(states[rows], weight[words], ctx.dtype)
                if cap is not None:
                    logits.div_(cap).tanh_().mul_(cap / temperatures[rows, None])
                if keep:
                    ctx.logits.append(logits)
                place, inside = found_in(labels[rows], words)
                chosen[rows] += torch.where(inside, logits.gather(1, place).squeeze(1), 0.0)
                peak = torch.maximum(highest[rows], logits.amax(1))
                shrunk = (highest[rows] - peak).exp()
                shares = (logits.clone() if keep or entropy else logits).sub_(peak[:, None]).exp_()
                total[rows] = total[rows] * shrunk + shares.sum(1)
                if entropy:
                    expected[rows] = expected[rows] * shrunk + shares.mul_(logits).sum(1)
                highest[rows] = peak
        norm, expected = highest + total.log(), expected / total
        ctx.save_for_backward(states, weight, labels, temperatures, norm, expected)
        return (chosen - norm, norm - expected) if entropy else chosen - norm

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, to_logprobs: Tensor | None, to_entropy: Tensor | None = None) -> tuple[Any, ...]:
        states, weight, labels, temperatures, norm, expected = ctx.saved_tensors
        wanted, cap = ctx.needs_input_grad, ctx.cap
        to_states = torch.zeros_like(states, dtype=torch.float32) if wanted[0] else None
        to_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None
        to_logprobs = torch.zeros_like(norm) if to_logprobs is None else to_logprobs
        with torch.autocast(states.device.type, enabled=False):
            for number, (rows, words) in enumerate(ctx.tiles):
                if ctx.logits:
                    back = ctx.logits[number].clone()  # the graph may be gone through again
                else:
                    back = product(states[rows], weight[words], ctx.dtype)
                    if cap is not None:
                        back.div_(cap).tanh_().mul_(cap / temperatures[rows, None])
                slope = None
                if cap is not None:
                    slope = (1 - (back * temperatures[rows, None] / cap).square()) / temperatures[rows, None]
                if to_entropy is None:
                    back.sub_(norm[rows, None]).exp_().mul_(-to_logprobs[rows, None])
                else:  # of the entropy by a logit: p · (mean logit - logit)
                    shares = (back - norm[rows, None]).exp_()
                    back.sub_(expected[rows, None]).mul_(-to_entropy[rows, None]).sub_(to_logprobs[rows, None])
                    back.mul_(shares)
                place, inside = found_in(labels[rows], words)
                back.scatter_add_(1, place, torch.where(inside, to_logprobs[rows], 0.0)[:, None])
                back = (back if slope is None else back.mul_(slope)).to(ctx.dtype)
                if to_states is not None:
                    add_product(to_states[rows], back, weight[words])
                if to_weight is not None:
                    add_product(to_weight[words], back.t(), states[rows])
        ends = (g if g is None else g.to(t.dtype) for g, t in ((to_states, states), (to_weight, weight)))
        return *ends, None, None, None, None, None, None


def product(states: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """[n,len(weight)] fp32: states · weightᵀ, multiplied in `dtype`."""
    return linear(states.to(dtype), weight.to(dtype)).float()


def tiles(count: int, vocabulary: int, elements: int, whole: bool) -> Iterator[tuple[slice, slice]]:
    """(rows, words) of each tile of [count,vocabulary]. whole: all words in each, where products are rounded to half
    precision and a sum of many of them would be biased.
    """
    wide = vocabulary if whole else min(vocabulary, WORDS, max(elements, 1))
    tall = max(1, elements // wide)
    for top in range(0, count, tall):
        for left in range(0, vocabulary, wide):
            yield slice(top, min(top + tall, count)), slice(left, min(left + wide, vocabulary))


def found_in(labels: Tensor, words: slice) -> tuple[Tensor, Tensor]:
    """(place [n,1] of each label among the words, any where it is not one of them; whether it is [n])."""
    inside = (labels >= words.start) & (labels < words.stop)
    return torch.where(inside, labels - words.start, 0)[:, None], inside


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left · right, multiplied in the dtype of `left`, to `total`, which is fp32."""
    right = right.to(left.dtype)
    if left.dtype == total.dtype and not faster(left, right):
        total.addmm_(left, right)
    else:
        total.add_(linear(left, right.t()))
