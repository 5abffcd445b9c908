"""Attention over many sequences in one row of tokens: no padding, no mask, and a context's keys shared by its responses.

Every token attends to its own segment up to itself, and a response's tokens also to their whole context. The second part
is attention without a mask, one call a context; the first is causal attention in rectangles of like length. Each part
gives its output and the logarithm of its normaliser, by which the two are joined; their backward passes take the joined
ones, so that memory grows with the number of tokens and not with its square.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "llmrl_packed"
NOWHERE = 1e30  # log-normaliser of padding: its probabilities come out as exactly 0
PADDING_TOLERATED = 1.5  # longest over shortest segment of one rectangle; only attention sees this padding

Span = tuple[int, int]  # first token and the one after the last


class Unpackable(TypeError):
    """A model asks something of its attention that packed rows do not have."""


@dataclass(frozen=True)
class Packing:
    """How a row of tokens is cut up. segments: spans that lie side by side and cover it. context_of: for each segment the
    number of the one that it continues, or None; those that continue the same one stand side by side.
    """

    segments: list[Span]
    context_of: list[int | None]
    device: torch.device

    @cached_property
    def rectangles(self) -> list[tuple[Tensor, Tensor]]:
        """(token [n,width], whether it is one rather than padding [n,width]) of segments of like length."""
        out = []
        for bucket in rectangles([stop - start for start, stop in self.segments], PADDING_TOLERATED):
            tokens = [torch.arange(*self.segments[i]) for i in bucket]
            index = pad_sequence(tokens, batch_first=True, padding_value=-1).to(self.device)
            out.append((index.clamp(min=0), index >= 0))
        return out

    @cached_property
    def shares(self) -> list[tuple[slice, slice]]:
        """(tokens that look back at a context, the context) for each context."""
        spans: dict[int, Span] = {}
        for (start, stop), context in zip(self.segments, self.context_of, strict=True):
            if context is not None:
                spans[context] = (spans.get(context, (start, stop))[0], stop)
        return [(slice(*span), slice(*self.segments[context])) for context, span in spans.items()]

    @cached_property
    def ragged(self) -> dict[str, Any]:
        """What torch's variable-length attention wants: where queries and keys of each segment begin, and `keys`, the
        place of every key, those of a context once for each segment that continues it.
        """
        before = [() if c is None else range(*self.segments[c]) for c in self.context_of]
        keys = [(*seen, *range(*span)) for seen, span in zip(before, self.segments, strict=True)]
        asked, held = [stop - start for start, stop in self.segments], [len(k) for k in keys]
        begin = [torch.tensor([0, *n]).cumsum(0).to(self.device, torch.int32) for n in (asked, held)]
        flat = torch.tensor([place for k in keys for place in k], device=self.device)
        return {"keys": flat, "cu_seq_q": begin[0], "cu_seq_k": begin[1], "max_q": max(asked), "max_k": max(held)}


def enable(model: nn.Module) -> None:
    """Let a transformers model whose attention is sdpa also take packed rows, as `packing=` of its decoder."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)


def longest(model: nn.Module) -> float:
    """Tokens of the longest sequence that a packed row may hold: a window or chunk of attention is left to transformers; 0
    where the model's attention is another than sdpa.
    """
    config = model.config.get_text_config()
    windows = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return min((w for w in windows if w is not None), default=math.inf) if config._attn_implementation == NAME else 0


def forward(trunk: nn.Module, ids: Tensor, positions: Tensor, packing: Any) -> Tensor:
    """States [N,H] of the packed tokens `ids` [N] at `positions` [N]. packing: a Packing, or whatever else has `attend`."""
    nothing = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids.device)  # four dimensions: taken for a finished mask
    out = trunk(
        input_ids=ids[None],
        attention_mask=nothing,
        position_ids=positions[None],
        use_cache=False,
        packing=packing,
    )
    return out.last_hidden_state[0]


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' attention function: [1,N,heads,d] of a packed row, transformers' own sdpa for anything else."""
    packing: Any = options.pop("packing", None)
    if packing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    asked = [name for name in ("position_bias", "s_aux", "output_attentions") if options.get(name) is not None]
    if asked or not getattr(module, "is_causal", True) or options.get("dropout"):
        raise Unpackable(f"its attention uses {asked or 'dropout or no causal order'}")
    scale = options.get("scaling")
    q, k, v = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))
    if not isinstance(packing, Packing):  # rows that are being decoded
        return packing.attend(module.layer_idx, q, k, v, scale)[None], None
    return (by_rectangles if q.device.type == "cpu" else by_kernel)(q, k, v, packing, scale)[None], None


def by_kernel(q: Tensor, k: Tensor, v: Tensor, packing: Packing, scale: float | None) -> Tensor:
    """[N,heads,d] by torch's variable-length attention, which is for half precision on a GPU."""
    from torch.nn.attention.varlen import varlen_attn

    if q.dtype not in (torch.float16, torch.bfloat16):
        raise Unpackable(f"torch has no variable-length attention in {q.dtype}")
    where = dict(packing.ragged)
    keys = where.pop("keys")
    return varlen_attn(
        q.contiguous(), k[keys], v[keys], scale=scale, window_size=(-1, 0), enable_gqa=q.shape[1] != k.shape[1], **where
    )


def by_rectangles(q: Tensor, k: Tensor, v: Tensor, packing: Packing, scale: float | None) -> Tensor:
    """[N,heads,d] by torch's attention kernel for CPUs."""
    return _Attention.apply(q, k, v, packing, scale)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, packing: Packing, scale: float | None) -> Tensor:
        out, norm = torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.promote_types(q.dtype, torch.float32))
        for index, real in packing.rectangles:
            got, logs = _attend(q[index], k[index], v[index], True, scale)
            out[index[real]], norm[index[real]] = got[real], logs[real]
        for asking, context in packing.shares:
            got, logs = _attend(q[None, asking], k[None, context], v[None, context], False, scale)
            joined = torch.logaddexp(norm[asking], logs[0])
            own, theirs = (x.sub(joined).exp()[..., None] for x in (norm[asking], logs[0]))
            out[asking], norm[asking] = (out[asking] * own + got[0] * theirs).to(out.dtype), joined
        ctx.save_for_backward(q, k, v, out, norm)
        ctx.packing, ctx.scale = packing, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, out, norm = ctx.saved_tensors
        to_q, to_k, to_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for index, real in ctx.packing.rectangles:
            padding = ~real[..., None]
            logs = norm[index].masked_fill(padding, NOWHERE)
            came = grad[index].masked_fill(padding[..., None], 0.0)
            got = _back(came, q[index], k[index], v[index], out[index], logs, True, ctx.scale)
            for total, part in zip((to_q, to_k, to_v), got, strict=True):
                total[index[real]] = part[real]
        for asking, context in ctx.packing.shares:
            few = (grad[None, asking], q[None, asking], k[None, context], v[None, context], out[None, asking])
            got = _back(*few, norm[None, asking], False, ctx.scale)
            for total, part, where in zip((to_q, to_k, to_v), got, (asking, context, context), strict=True):
                total[where] += part[0]
        return to_q, to_k, to_v, None, None


def _attend(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float | None) -> tuple[Tensor, Tensor]:
    """(output [n,L,heads,d], log-normaliser [n,L,heads]) of queries and keys [n,L,heads,d]."""
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, norm = kernel(*heads_first, 0.0, causal, scale=scale)
    return out.transpose(1, 2), norm.transpose(1, 2)


def _back(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, norm: Tensor, causal: bool, scale: float | None
) -> list[Tensor]:
    """Gradients of q, k, v, where `out` and `norm` are those over all keys, also those of other calls."""
    given = (x.transpose(1, 2) for x in (grad, q, k, v, out, norm))
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return [x.transpose(1, 2) for x in kernel(*given, 0.0, causal, scale=scale)]


def rectangles(lengths: Sequence[int], tolerated: float) -> list[list[int]]:
    """Rows of like length together, longest first; those of length 0 are in none. tolerated: longest over shortest."""
    order = sorted((i for i, n in enumerate(lengths) if n > 0), key=lambda i: -lengths[i])
    out: list[list[int]] = []
    for i in order:
        if out and lengths[out[-1][0]] <= tolerated * lengths[i] + 2:
            out[-1].append(i)
        else:
            out.append([i])
    return out


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
