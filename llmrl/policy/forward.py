"""The model in training as one module: ragged contexts and responses in, one number a response token out.

All rows go through as one row of tokens in which a group's context stands once ('shared', see llmrl.policy.packed), or
every row is forwarded whole, padded, by transformers alone ('dense'). Both give the same numbers; `Policy` checks that
before it relies on the first.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from itertools import chain, compress, repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from llmrl.clock import span
from llmrl.ops import linear
from llmrl.ops.logprobs import CHUNK_ELEMENTS, action_statistics, kl_statistics, token_statistics
from llmrl.ops.projected import Projection
from llmrl.policy import packed
from llmrl.policy.noise import Draw, Noise
from llmrl.policy.packed import rectangles
from llmrl.policy.sharding import full, spread

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

    def take(self, chosen: Sequence[int]) -> Rows:
        """Some of the rows, in the order given."""
        columns = (self.contexts, self.responses, self.masks, self.temperatures)
        return Rows(*([column[i] for i in chosen] for column in columns), self.keys and [self.keys[i] for i in chosen])

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
        self.tolerated = PADDING_TOLERATED
        packed.enable(base_model(model))
        linear.install(model)
        self.longest_shared = packed.longest(base_model(model))

    def forward_at_once(self) -> None:
        """Have the trunk called once in each forward pass, whatever the rows: where processes have to call equally often."""
        self.tolerated = math.inf

    def shares(self, rows: Rows) -> bool:
        """Whether these rows can be forwarded with shared contexts."""
        lengths = (len(c) + len(r) for c, r in zip(rows.contexts, rows.responses, strict=True))
        return max(lengths) <= self.longest_shared

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
        with span("trunk"):
            found = counted_states(base.get_decoder(), rows, shared and self.shares(rows), scores, draw, self.tolerated)
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
            with span("head"):
                got = token_statistics(hidden, head.plain(), labels, temperatures, head.vocabulary, entropy)
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
                numbers["values"] = self.value_head.forward(hidden.float()).squeeze(-1)
        if scores:
            numbers["scores"] = self.score(base, found.after)
        out = {name: spread(column) for name, column in numbers.items()}
        return out | {"states": hidden} if states else out

    def action_value(self, states: Tensor) -> Tensor:
        """[N,V] fp32 of states [N,H]."""
        with torch.autocast(states.device.type, enabled=False):
            return self.action_value_head.forward(states.float())

    def score(self, base: nn.Module, states: Tensor) -> Tensor:
        """[N] fp32 of states [N,H]."""
        if self.verdicts is not None:
            head = LogitHead(base)
            pieces = states.split(max(1, CHUNK_ELEMENTS // head.vocabulary))  # no [N,V] tensor at once
            logits = torch.cat([head(piece)[:, list(self.verdicts)] for piece in pieces]).float()
            return logits[:, 0] - logits[:, 1]
        with torch.autocast(states.device.type, enabled=False):
            return self.score_head.forward(states.float()).squeeze(-1)


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
        # past DeepSpeed's hooks, which wait for processes that call it less often
        zero = hasattr(getattr(self.linear, "weight", None), "ds_id")
        logits = self.linear.forward(hidden) if zero else self.linear(hidden)
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def plain(self) -> Projection | LogitHead:
        """As the matrix it is; itself where something else happens there: adapters, a bias, hooks of whoever shards it."""
        layer = self.linear
        if type(layer) is not nn.Linear or layer.bias is not None:
            return self
        hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
        replaced = "forward" in vars(layer) and not linear.installed(layer)
        sharded = type(layer.weight) not in (nn.Parameter, Tensor)
        return self if any(hooks) or replaced or sharded else Projection(layer.weight, self.scale, self.cap)

    def frozen(self) -> LogitHead:
        """One that stays as it is now: a copy where its weights are trained, or stand behind adapters."""
        out = copy(self)
        if type(self.linear) is not nn.Linear or self.linear.weight.requires_grad or spread(self.linear):
            out.linear = deepcopy(self.linear).requires_grad_(False)
            for part in out.linear.modules():  # of whoever spreads the weights: the copy's are whole
                for hooks in (
                    part._forward_hooks,
                    part._forward_pre_hooks,
                    part._backward_hooks,
                    part._backward_pre_hooks,
                ):
                    hooks.clear()
            for own, part in zip(self.linear.modules(), out.linear.modules(), strict=True):
                for name, weight in own.named_parameters(recurse=False):
                    setattr(part, name, nn.Parameter(full(weight).clone(), requires_grad=False))
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
    trunk: nn.Module,
    rows: Rows,
    shared: bool,
    after: bool = False,
    draw: Draw | None = None,
    tolerated: float = PADDING_TOLERATED,
) -> Counted:
    """The states around each counted response token, rows in order; after: also those that have read it."""
    read = rows if after else replace(rows, responses=[r[:-1] for r in rows.responses])
    states, first, rest = shared_states(trunk, read, draw) if shared else dense_states(trunk, read, draw, tolerated)
    row = torch.cat([torch.full((sum(m),), i) for i, m in enumerate(rows.masks)])
    column = torch.cat(
        [torch.tensor([t for t, counted in enumerate(m) if counted], dtype=torch.long) for m in rows.masks]
    )
    flat = torch.where(column == 0, first[row], rest[row] + column - 1)
    behind = (rest[row] + column).to(states.device)
    return Counted(
        states.index_select(0, flat.to(states.device)), states.index_select(0, behind) if after else None, row, column
    )


def dense_states(
    trunk: nn.Module, rows: Rows, draw: Draw | None, tolerated: float = PADDING_TOLERATED
) -> tuple[Tensor, Tensor, Tensor]:
    """Every row forwarded whole, in rectangles of like length. tolerated: longest over shortest row of one.

    (states [M,H], where the state after each row's context is, where that after its first response token).
    """
    device = next(trunk.parameters()).device
    inputs = [(*c, *r) for c, r in zip(rows.contexts, rows.responses, strict=True)]
    states, offset = [], 0
    first = torch.zeros(len(rows), dtype=torch.long)
    for bucket in rectangles([len(i) for i in inputs], tolerated):
        ids, mask = padded([inputs[i] for i in bucket], device, left=False)
        with perturbation(draw, [[(i, 0, len(inputs[i]))] for i in bucket], device):
            hidden = trunk(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        states.append(hidden.reshape(-1, hidden.shape[-1]))
        for place, i in enumerate(bucket):
            first[i] = offset + place * ids.shape[1] + len(rows.contexts[i]) - 1
        offset += ids.numel()
    return torch.cat(states), first, first + 1


def shared_states(trunk: nn.Module, rows: Rows, draw: Draw | None) -> tuple[Tensor, Tensor, Tensor]:
    """Each distinct context forwarded once with its responses behind it, all in one row of tokens without padding."""
    device = next(trunk.parameters()).device
    owners: dict[tuple[int, ...], list[int]] = {}
    for i, context in enumerate(rows.contexts):
        owners.setdefault(tuple(context), []).append(i)
    ids: list[int] = []
    positions: list[int] = []
    spans: list[tuple[int, int, int]] = []
    segments: list[packed.Span] = []
    context_of: list[int | None] = []
    first, rest = torch.zeros(2, len(rows), dtype=torch.long)

    def add(row: int, start: int, stop: int, context: int | None) -> None:
        whole = (*rows.contexts[row], *rows.responses[row])
        segments.append((len(ids), len(ids) + stop - start))
        context_of.append(context)
        spans.append((row, start, stop))
        ids.extend(whole[start:stop])
        positions.extend(range(start, stop))

    for context, mine in owners.items():
        length, begin = len(context), len(ids)
        first[mine] = begin + length - 1
        if len(mine) == 1:  # one segment, with no context to look back at
            rest[mine] = begin + length
            add(mine[0], 0, length + len(rows.responses[mine[0]]), None)
            continue
        add(mine[0], 0, length, None)
        number = len(segments) - 1
        for i in mine:
            rest[i] = len(ids)
            if rows.responses[i]:
                add(i, length, length + len(rows.responses[i]), number)
    packing = packed.Packing(segments, context_of, device)
    with perturbation(draw, [spans], device):
        states = packed.forward(
            trunk, torch.tensor(ids, device=device), torch.tensor(positions, device=device), packing
        )
    return states, first, rest


def perturbation(
    draw: Draw | None, lines: Sequence[Sequence[tuple[int, int, int]]], device: torch.device
) -> contextlib.AbstractContextManager:
    """Inside, the trunk adds the noise drawn for what it is given: (row, from, to) of the sequences of each line."""
    if draw is None:
        return contextlib.nullcontext()
    codes, _ = padded([torch.cat([draw.codes[i][a:b] for i, a, b in line]) for line in lines], device, left=False)
    return draw.noise.keyed(codes)


def expanded(cache: DynamicCache, owners: Tensor) -> DynamicCache:
    """A cache with one entry a row, read from its context's; gradients flow back into the context."""
    out = copy(cache)
    # copied, not filled anew: a sliding layer also counts the tokens that its window has let go
    out.layers = [copy(layer) for layer in cache.layers]
    for layer in out.layers:
        layer.keys, layer.values = layer.keys.index_select(0, owners), layer.values.index_select(0, owners)
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
