"""The model in training as one module: ragged contexts and responses in, one number a response token out.

A group's context is forwarded once and its keys and values are shared by the group's responses ('shared'), or every
row is forwarded whole ('dense'). Both give the same numbers; `Policy` checks that before it relies on the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from llmrl.ops.logprobs import CHUNK_ELEMENTS, token_statistics

Ids = Sequence[int]
PADDING_TOLERATED = 1.25  # longest over shortest response forwarded as one rectangle


@dataclass(frozen=True)
class Rows:
    """What one forward pass sees: for each row its context, response, counted positions and temperature."""

    contexts: list[Ids]
    responses: list[Ids]
    masks: list[Sequence[bool]]
    temperatures: list[float]

    def __len__(self) -> int:
        return len(self.contexts)


class PolicyModule(nn.Module):
    """A causal language model with what reads further numbers off its trunk's states.

    value_head: a critic. score_head: a reward model's; or verdicts, two token ids whose logits' difference is the score.
    """

    def __init__(
        self,
        model: nn.Module,
        value_head: nn.Module | None = None,
        score_head: nn.Module | None = None,
        verdicts: tuple[int, int] | None = None,
    ):
        super().__init__()
        self.model = model
        self.value_head = value_head
        self.score_head = score_head
        self.verdicts = verdicts

    def forward(
        self,
        rows: Rows,
        width: int,
        entropy: bool = False,
        values: bool = False,
        shared: bool = True,
        scores: bool = False,
        logprobs: bool = True,
    ) -> dict[str, Tensor]:
        """{'logprobs'?, 'entropy'?, 'values'?, 'scores'?}, each [B,width] fp32, 0 where nothing counts.

        The value of position t is that of the state before token t, read off the same hidden state as its logits; the
        score that of the state after it. Without scores the last token of a response is not forwarded.
        """
        base = base_model(self.model)
        states = counted_states(base.get_decoder(), rows, shared, after=scores)
        device, row, column = states.before.device, states.row, states.column
        place = (row.to(device), column.to(device))

        def spread(numbers: Tensor) -> Tensor:
            return numbers.new_zeros(len(rows), width).index_put(place, numbers)

        out = {}
        if logprobs or entropy:
            labels = torch.tensor(
                [rows.responses[i][t] for i, t in zip(row.tolist(), column.tolist(), strict=True)],
                dtype=torch.long,
                device=device,
            )
            temperatures = torch.tensor(rows.temperatures, device=device)[place[0]]
            head = LogitHead(base)
            found = token_statistics(states.before, head, labels, temperatures, head.vocabulary, entropy)
            names = ("logprobs", "entropy") if entropy else ("logprobs",)
            out = {name: spread(numbers) for name, numbers in zip(names, found, strict=False)}
        if values:
            with torch.autocast(device.type, enabled=False):
                out["values"] = spread(self.value_head(states.before.float()).squeeze(-1))
        if scores:
            out["scores"] = spread(self.score(base, states.after))
        return out

    def score(self, base: nn.Module, states: Tensor) -> Tensor:
        """[N] fp32 of states [N,H]."""
        if self.verdicts is not None:
            head = LogitHead(base)
            pieces = states.split(max(1, CHUNK_ELEMENTS // head.vocabulary))  # no [N,V] tensor at once
            logits = torch.cat([head(piece)[:, list(self.verdicts)] for piece in pieces]).float()
            return logits[:, 0] - logits[:, 1]
        with torch.autocast(states.device.type, enabled=False):
            return self.score_head(states.float()).squeeze(-1)


class LogitHead:
    """From hidden states to logits, with whatever the architecture does to them afterwards."""

    def __init__(self, base: nn.Module):
        self.linear = base.get_output_embeddings()
        text = base.config.get_text_config()
        self.vocabulary = int(text.vocab_size)
        self.cap = getattr(text, "final_logit_softcapping", None)
        self.scale = float(getattr(text, "logit_scale", None) or 1.0) / float(
            getattr(text, "logits_scaling", None) or 1.0
        )

    def __call__(self, hidden: Tensor) -> Tensor:
        logits = self.linear(hidden)
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


def base_model(model: Any) -> Any:
    """The transformers model behind a peft wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class Counted(NamedTuple):
    """The states [N,H] before each counted response token and after it (None if not asked for), and where it stands."""

    before: Tensor
    after: Tensor | None
    row: Tensor
    column: Tensor


def counted_states(trunk: nn.Module, rows: Rows, shared: bool, after: bool = False) -> Counted:
    """The states around each counted response token, rows in order; after: also those that have read it."""
    read = rows if after else replace(rows, responses=[r[:-1] for r in rows.responses])
    states, first, rest = (shared_states if shared else dense_states)(trunk, read)
    row = torch.cat([torch.full((sum(m),), i) for i, m in enumerate(rows.masks)])
    column = torch.cat(
        [torch.tensor([t for t, counted in enumerate(m) if counted], dtype=torch.long) for m in rows.masks]
    )
    flat = torch.where(column == 0, first[row], rest[row] + column - 1)
    behind = (rest[row] + column).to(states.device)
    return Counted(
        states.index_select(0, flat.to(states.device)), states.index_select(0, behind) if after else None, row, column
    )


def dense_states(trunk: nn.Module, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Every row forwarded whole, in rectangles of like length.

    (states [M,H], where the state after each row's context is, where that after its first response token).
    """
    device = next(trunk.parameters()).device
    inputs = [(*c, *r) for c, r in zip(rows.contexts, rows.responses, strict=True)]
    states, offset = [], 0
    first = torch.zeros(len(rows), dtype=torch.long)
    for bucket in rectangles([len(i) for i in inputs]):
        ids, mask = padded([inputs[i] for i in bucket], device, left=False)
        hidden = trunk(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        states.append(hidden.reshape(-1, hidden.shape[-1]))
        for place, i in enumerate(bucket):
            first[i] = offset + place * ids.shape[1] + len(rows.contexts[i]) - 1
        offset += ids.numel()
    return torch.cat(states), first, first + 1


def shared_states(trunk: nn.Module, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Each distinct context forwarded once; the responses, in rectangles of like length, over its keys and values."""
    device = next(trunk.parameters()).device
    places: dict[tuple[int, ...], int] = {}
    context_of = [places.setdefault(tuple(c), len(places)) for c in rows.contexts]
    ids, mask = padded(list(places), device, left=True)
    cache = DynamicCache(config=trunk.config)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    hidden = trunk(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
    ).last_hidden_state
    states, offset = [hidden[:, -1]], len(places)
    first = torch.tensor(context_of)
    rest = torch.zeros(len(rows), dtype=torch.long)
    for bucket in rectangles([len(r) for r in rows.responses]):
        owners = torch.tensor([context_of[i] for i in bucket], device=device)
        suffix, suffix_mask = padded([rows.responses[i] for i in bucket], device, left=False)
        lengths = mask.sum(1)[owners]
        out = trunk(
            input_ids=suffix,
            attention_mask=torch.cat([mask[owners], suffix_mask], 1),
            position_ids=lengths[:, None] + torch.arange(suffix.shape[1], device=device),
            past_key_values=expanded(cache, owners),
            use_cache=True,
        ).last_hidden_state
        states.append(out.reshape(-1, out.shape[-1]))
        rest[bucket] = offset + torch.arange(len(bucket)) * suffix.shape[1]
        offset += len(bucket) * suffix.shape[1]
    return torch.cat(states), first, rest


def expanded(cache: DynamicCache, owners: Tensor) -> DynamicCache:
    """A cache with one entry a row, read from its context's; gradients flow back into the context."""
    out = copy(cache)
    # copied, not filled anew: a sliding layer also counts the tokens that its window has let go
    out.layers = [copy(layer) for layer in cache.layers]
    for layer in out.layers:
        layer.keys, layer.values = layer.keys.index_select(0, owners), layer.values.index_select(0, owners)
    return out


def rectangles(lengths: Sequence[int]) -> list[list[int]]:
    """Rows of like length together, longest first; rows of length 0 need no forward and are in none."""
    order = sorted((i for i, n in enumerate(lengths) if n > 0), key=lambda i: -lengths[i])
    out: list[list[int]] = []
    for i in order:
        if out and lengths[out[-1][0]] <= PADDING_TOLERATED * lengths[i] + 2:
            out[-1].append(i)
        else:
            out.append([i])
    return out


def padded(sequences: Sequence[Ids], device: torch.device, left: bool) -> tuple[Tensor, Tensor]:
    """(ids [n,width], mask [n,width] int64) with zeros for padding on the side given."""
    width = max(len(s) for s in sequences)
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, sequence in enumerate(sequences):
        where = slice(width - len(sequence), width) if left else slice(0, len(sequence))
        ids[i, where] = torch.tensor(sequence, dtype=torch.long)
        mask[i, where] = 1
    return ids.to(device), mask.to(device)
