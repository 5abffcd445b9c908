"""The model in training as one module: ragged contexts and responses in, one number a response token out.

A group's context is forwarded once and its keys and values are shared by the group's responses ('shared'), or every
row is forwarded whole ('dense'). Both give the same numbers; `Policy` checks that before it relies on the first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from itertools import chain, compress, repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from llmrl.ops.logprobs import CHUNK_ELEMENTS, action_statistics, kl_statistics, token_statistics
from llmrl.policy.noise import Draw, Noise

Ids = Sequence[int]
ACTION_VALUES = ("action_values", "expected_values", "expected_advantages")
PADDING_TOLERATED = 1.25  # longest over shortest response forwarded as one rectangle


@dataclass(frozen=True)
class Rows:
    """What one forward pass sees: for each row its context, response, counted positions and temperature.

    temperatures: one a row, or one a response token. keys: what a row's noise hangs on, needed where there is some.
    """

    contexts: list[Ids]
    responses: list[Ids]
    masks: list[Sequence[bool]]
    temperatures: list[float | Sequence[float]]
    keys: list[int] | None = None

    def __len__(self) -> int:
        return len(self.contexts)

    def at_temperatures(self) -> list[float]:
        """The temperature of each counted token, rows in order."""
        held = zip(self.temperatures, self.masks, strict=True)
        each = [t if isinstance(t, Sequence) else repeat(t, len(mask)) for t, mask in held]
        return list(chain.from_iterable(map(compress, each, self.masks)))

    def by_row(self, numbers: Tensor) -> list[Tensor]:
        """What has one entry a counted token, rows in order, cut into the rows."""
        return list(numbers.split([sum(mask) for mask in self.masks]))


class PolicyModule(nn.Module):
    """A causal language model with what reads further numbers off its trunk's states.

    value_head: a critic. score_head: a reward model's; or verdicts, two token ids whose logits' difference is the score.
    action_value_head: a critic with a value for every token. noise: what perturbed passes add to the trunk's layers, set by
    whoever wants some (LayerNoise.apply); its sizes are trained, but no part of an export or of an engine's weights.
    """

    def __init__(
        self,
        model: nn.Module,
        value_head: nn.Module | None = None,
        score_head: nn.Module | None = None,
        verdicts: tuple[int, int] | None = None,
        action_value_head: nn.Module | None = None,
    ):
        super().__init__()
        self.model = model
        self.value_head = value_head
        self.score_head = score_head
        self.verdicts = verdicts
        self.action_value_head = action_value_head
        self.noise: Noise | None = None

    def forward(
        self,
        rows: Rows,
        width: int,
        entropy: bool = False,
        values: bool = False,
        shared: bool = True,
        scores: bool = False,
        logprobs: bool = True,
        action_values: bool = False,
        old: StoredStates | None = None,
        ref: StoredStates | None = None,
        states: bool = False,
        perturbed: int | None = None,
    ) -> dict[str, Tensor]:
        """{'logprobs'?, 'entropy'?, 'values'?, ...}, each [B,width] fp32, 0 where nothing counts. See Policy.statistics.

        The value of position t is that of the state before token t, read off the same hidden state as its logits; the
        score that of the state after it. Without scores the last token of a response is not forwarded.
        """
        base = base_model(self.model)
        draw = None if perturbed is None else self.noise.draw(rows, perturbed)
        found = counted_states(base.get_decoder(), rows, shared, scores, draw)
        device, hidden = found.before.device, found.before
        place = (found.row.to(device), found.column.to(device))
        head = LogitHead(base)

        def spread(numbers: Tensor) -> Tensor:
            return numbers.new_zeros(len(rows), width).index_put(place, numbers)

        numbers: dict[str, Tensor] = {}
        if logprobs or entropy or action_values or old or ref:
            tokens = list(chain.from_iterable(map(compress, rows.responses, rows.masks)))
            labels = torch.tensor(tokens, dtype=torch.long, device=device)
            temperatures = torch.tensor(rows.at_temperatures(), dtype=torch.float32, device=device)
        if logprobs or entropy:
            got = token_statistics(hidden, head, labels, temperatures, head.vocabulary, entropy)
            numbers |= zip(("logprobs", "entropy") if entropy else ("logprobs",), got, strict=False)
        if action_values:
            got = action_statistics(hidden, head, self.action_value, labels, temperatures, head.vocabulary)
            numbers |= zip(ACTION_VALUES, got, strict=True)
        for name, other, direction in (("old_kl", old, "forward"), ("ref_kl", ref, "reverse")):
            if other is not None:
                theirs = other.at(rows.masks).to(device)
                numbers[name] = kl_statistics(
                    hidden, head, theirs, other.head, temperatures, head.vocabulary, direction
                )
        if values:
            with torch.autocast(device.type, enabled=False):
                numbers["values"] = self.value_head(hidden.float()).squeeze(-1)
        if scores:
            numbers["scores"] = self.score(base, found.after)
        out = {name: spread(column) for name, column in numbers.items()}
        return out | {"states": hidden} if states else out

    def action_value(self, states: Tensor) -> Tensor:
        """[N,V] fp32 of states [N,H]."""
        with torch.autocast(states.device.type, enabled=False):
            return self.action_value_head(states.float())

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

    def frozen(self) -> LogitHead:
        """One that stays as it is now: a copy where its weights are trained, or stand behind adapters."""
        out = copy(self)
        if type(self.linear) is not nn.Linear or self.linear.weight.requires_grad:
            out.linear = deepcopy(self.linear).requires_grad_(False)
        return out


@dataclass(frozen=True)
class StoredStates:
    """The hidden states [n,H] before each row's counted tokens, on the CPU, and the head that makes logits of them: the
    distributions of a policy that is another by now. masks: what counted then.
    """

    states: list[Tensor]
    masks: list[Sequence[bool]]
    head: LogitHead

    def take(self, rows: Sequence[int]) -> StoredStates:
        return StoredStates([self.states[i] for i in rows], [self.masks[i] for i in rows], self.head)

    def at(self, masks: Sequence[Sequence[bool]]) -> Tensor:
        """The states [N,H] of what counts now, rows in order. ValueError for a token that did not count then."""
        parts = []
        for states, then, now in zip(self.states, self.masks, masks, strict=True):
            then, now = torch.tensor(then, dtype=torch.bool), torch.tensor(now, dtype=torch.bool)
            if (now & ~then).any():
                raise ValueError("a token counts now of which no state was stored")
            parts.append(states[now[then]])
        return torch.cat(parts)


def base_model(model: Any) -> Any:
    """The transformers model behind a peft wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class Counted(NamedTuple):
    """The states [N,H] before each counted response token and after it (None if not asked for), and where it stands."""

    before: Tensor
    after: Tensor | None
    row: Tensor
    column: Tensor


def counted_states(
    trunk: nn.Module, rows: Rows, shared: bool, after: bool = False, draw: Draw | None = None
) -> Counted:
    """The states around each counted response token, rows in order; after: also those that have read it."""
    read = rows if after else replace(rows, responses=[r[:-1] for r in rows.responses])
    states, first, rest = (shared_states if shared else dense_states)(trunk, read, draw)
    row = torch.cat([torch.full((sum(m),), i) for i, m in enumerate(rows.masks)])
    column = torch.cat(
        [torch.tensor([t for t, counted in enumerate(m) if counted], dtype=torch.long) for m in rows.masks]
    )
    flat = torch.where(column == 0, first[row], rest[row] + column - 1)
    behind = (rest[row] + column).to(states.device)
    return Counted(
        states.index_select(0, flat.to(states.device)), states.index_select(0, behind) if after else None, row, column
    )


def dense_states(trunk: nn.Module, rows: Rows, draw: Draw | None) -> tuple[Tensor, Tensor, Tensor]:
    """Every row forwarded whole, in rectangles of like length.

    (states [M,H], where the state after each row's context is, where that after its first response token).
    """
    device = next(trunk.parameters()).device
    inputs = [(*c, *r) for c, r in zip(rows.contexts, rows.responses, strict=True)]
    states, offset = [], 0
    first = torch.zeros(len(rows), dtype=torch.long)
    for bucket in rectangles([len(i) for i in inputs]):
        ids, mask = padded([inputs[i] for i in bucket], device, left=False)
        with perturbation(draw, [(i, 0, len(inputs[i])) for i in bucket], device, left=False):
            hidden = trunk(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        states.append(hidden.reshape(-1, hidden.shape[-1]))
        for place, i in enumerate(bucket):
            first[i] = offset + place * ids.shape[1] + len(rows.contexts[i]) - 1
        offset += ids.numel()
    return torch.cat(states), first, first + 1


def shared_states(trunk: nn.Module, rows: Rows, draw: Draw | None) -> tuple[Tensor, Tensor, Tensor]:
    """Each distinct context forwarded once; the responses, in rectangles of like length, over its keys and values."""
    device = next(trunk.parameters()).device
    places: dict[tuple[int, ...], int] = {}
    context_of = [places.setdefault(tuple(c), len(places)) for c in rows.contexts]
    ids, mask = padded(list(places), device, left=True)
    cache = DynamicCache(config=trunk.config)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    owner = {place: row for row, place in reversed(list(enumerate(context_of)))}
    with perturbation(draw, [(owner[p], 0, len(c)) for c, p in places.items()], device, left=True):
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
        spans = [(i, len(rows.contexts[i]), len(rows.contexts[i]) + len(rows.responses[i])) for i in bucket]
        with perturbation(draw, spans, device, left=False):
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


def perturbation(
    draw: Draw | None, spans: Sequence[tuple[int, int, int]], device: torch.device, left: bool
) -> contextlib.AbstractContextManager:
    """Inside, the trunk adds the noise drawn for what it is given: (row, from, to) of each sequence, padded like it."""
    if draw is None:
        return contextlib.nullcontext()
    codes, _ = padded([draw.codes[row][start:stop] for row, start, stop in spans], device, left)
    return draw.noise.keyed(codes)


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


def padded(sequences: Sequence[Ids | Tensor], device: torch.device, left: bool) -> tuple[Tensor, Tensor]:
    """(ids [n,width], mask [n,width] int64) with zeros for padding on the side given."""
    width = max(len(s) for s in sequences)
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, sequence in enumerate(sequences):
        where = slice(width - len(sequence), width) if left else slice(0, len(sequence))
        ids[i, where] = torch.as_tensor(sequence, dtype=torch.long)
        mask[i, where] = 1
    return ids.to(device), mask.to(device)
