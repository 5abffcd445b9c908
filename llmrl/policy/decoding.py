"""The keys and values of rows that grow by one token at a time, all from the same prefilled prompts.

`SharedPrompts` keeps each prompt once for all rows that continue it, and appends in place; it needs a CPU and an attention
that packed rows can replace. `CachedRows` is transformers' own cache, for every other model: each row has a copy of its
prompt. Both give the same states; `decoder` checks that before it relies on the first.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from llmrl.policy import packed
from llmrl.policy.forward import base_model, expanded, padded

TOLERANCE = {"fp32": 1e-3, "bf16": 0.25}  # largest |difference| over largest state that is rounding, not a bug
ROOM = 32  # tokens that memory is taken for at once, at least


class Prefilled:
    """Prompts after their forward pass. hidden [g,H]: their last states; mask [g,P]: what is not padding, which is left."""

    def __init__(self, trunk: nn.Module, prompts: list[tuple[int, ...]], device: torch.device):
        ids, self.mask = padded(prompts, device, left=True)
        self.cache = DynamicCache(config=trunk.config)
        self.hidden = trunk(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=(self.mask.cumsum(1) - 1).clamp(min=0),
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state[:, -1]


class CachedRows:
    """Rows in transformers' own cache. owners [n]: the prompt of each row."""

    def __init__(self, trunk: nn.Module, prefilled: Prefilled, owners: Tensor):
        self.trunk = trunk
        self.cache = expanded(prefilled.cache, owners)
        self.mask = prefilled.mask[owners]
        self.positions = self.mask.sum(1)

    def step(self, token: Tensor) -> Tensor:
        """States [n,H] after one more token [n] of each row."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(token), 1)], 1)
        hidden = self.trunk(
            input_ids=token[:, None],
            attention_mask=self.mask,
            position_ids=self.positions[:, None],
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        self.positions = self.positions + 1
        return hidden

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone."""
        self.cache = expanded(self.cache, rows)
        self.mask, self.positions = self.mask[rows], self.positions[rows]


class SharedPrompts:
    """Rows that all have written the same number of tokens: attention to those needs neither mask nor padding, attention to
    a prompt is one call for all its rows, and the two are joined by their normalisers. owners [n]: each row's prompt, in
    ascending order.
    """

    def __init__(self, trunk: nn.Module, prefilled: Prefilled, owners: Tensor):
        self.trunk = trunk
        self.prompts = [(layer.keys, layer.values) for layer in prefilled.cache.layers]
        self.bias = prefilled.hidden.new_zeros(prefilled.mask.shape).masked_fill(prefilled.mask == 0, -math.inf)
        self.lengths = prefilled.mask.sum(1)
        self.own: dict[int, tuple[Tensor, Tensor]] = {}  # by layer, [n,heads,room,d]
        self.written = 0
        self._place(owners)

    def step(self, token: Tensor) -> Tensor:
        """States [n,H] after one more token [n] of each row."""
        hidden = packed.forward(self.trunk, token, self.lengths[self.owners] + self.written, self)
        self.written += 1
        return hidden

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone, in ascending order."""
        some = slice(0, self.written)
        self.own = {i: tuple(x[:, :, some].index_select(0, rows) for x in own) for i, own in self.own.items()}
        self._place(self.owners[rows])

    def _place(self, owners: Tensor) -> None:
        """Where each row stands in a rectangle of prompts by their rows; prompts without rows are let go."""
        prompts, self.owners, counts = owners.unique_consecutive(return_inverse=True, return_counts=True)
        if len(prompts) < len(self.lengths):
            self.prompts = [tuple(x.index_select(0, prompts) for x in both) for both in self.prompts]
            self.bias, self.lengths = self.bias[prompts], self.lengths[prompts]
        self.most = int(counts.max())
        before = counts.cumsum(0) - counts
        self.places = self.owners * self.most + torch.arange(len(owners), device=owners.device) - before[self.owners]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        """[n,heads,d] of one new token [n,heads,d] of each row."""
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, norm = kernel(q[:, :, None], *self._appended(layer, k, v), scale=scale)
        size = len(self.lengths), self.most
        asking = q.new_zeros(size[0] * size[1], *q.shape[1:]).index_copy_(0, self.places, q)
        bias = self.bias[:, None, None].to(q.dtype)
        found = kernel(asking.unflatten(0, size).transpose(1, 2), *self.prompts[layer], attn_mask=bias, scale=scale)
        theirs, logs = (x.transpose(1, 2).flatten(0, 1).index_select(0, self.places) for x in found)
        share = (logs - norm[:, :, 0]).sigmoid().to(out.dtype)
        return torch.lerp(out[:, :, 0], theirs, share[..., None])

    def _appended(self, layer: int, *new: Tensor) -> list[Tensor]:
        """Keys and values [n,heads,written+1,d] with those of this token [n,heads,d] behind."""
        held, t = self.own.get(layer), self.written
        if held is None or held[0].shape[2] == t:
            room = t + max(ROOM, t // 2)
            grown = tuple(x.new_empty(*x.shape[:2], room, x.shape[2]) for x in new)
            for old, more in zip(held or (), grown, strict=bool(held)):
                more[:, :, :t] = old
            self.own[layer] = held = grown
        for all_of_it, x in zip(held, new, strict=True):
            all_of_it[:, :, t] = x
        return [x[:, :, : t + 1] for x in held]


def can_share(model: Any, tokens: int, precision: str) -> bool:
    """Whether `SharedPrompts` gives this model's states for sequences of so many tokens; warns where it fails unexpectedly.

    Two steps of four rows are compared, with other tokens in each, so that a row which reads another's is seen.
    """
    base = base_model(model)
    trunk, device = base.get_decoder(), next(model.parameters()).device
    if device.type != "cpu" or tokens > packed.longest(base):
        return False
    prefilled = Prefilled(trunk, [(1, 2, 3), (4,)], device)
    owners = torch.tensor([0, 0, 1, 1])
    try:
        ours, theirs = (kind(trunk, prefilled, owners) for kind in (SharedPrompts, CachedRows))
        errors = []
        for first in (1, 5):
            token = torch.arange(first, first + 4)
            found, expected = ours.step(token), theirs.step(token)
            errors.append((found - expected).abs().max() / expected.abs().max())
        worst = torch.stack(errors).max().item()  # NaN if any is
    except Exception as error:  # noqa: BLE001 - an architecture may refuse in any way it likes
        said = repr(error)
    else:
        if worst <= TOLERANCE[precision]:
            return True
        said = f"states differ by {worst:.2g} of the largest, at most {TOLERANCE[precision]:g} is rounding"
    warnings.warn(f"decoding over shared prompts does not work with this model ({said}); each row has a copy of its "
                  "prompt from now on.", stacklevel=2)  # fmt: skip
    return False
