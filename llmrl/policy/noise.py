"""Noise of a learned size inside the model while it trains. It is a hash of what it is added to: no place in a batch, no
padding, no micro-batch and no recomputation of activations changes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from array import array
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from llmrl.config import Natural, Positive
from llmrl.errors import ModelError


class LayerNoise:
    """Gaussian noise of a learned size on the input of each decoder layer (ALP, arXiv:2603.19470).

    h_l <- h_l + sigma_l · eps_l before the layer's first norm, so that it stays on the residual stream;
    sigma_l = exp(log_coef_l), eps_l ~ N(0, I) for each row, token and hidden unit; d log_coef_l = sigma_l · sum(g · eps_l)
    sigma: at the start, 0 for none ever. learning_rate: of log_coef. first, last: the layers from first up to, not
    including, last; None: to the end. The defaults are those of the authors' single-turn runs; their multi-turn runs have
    1e-8 and 1e-2.
    """

    def __init__(
        self,
        *,
        sigma: Annotated[float, Field(ge=0)] = 1e-6,
        learning_rate: Annotated[float, Field(gt=0)] = 5e-4,
        first: Natural = 0,
        last: Positive | None = None,
    ):
        self.sigma, self.learning_rate, self.first, self.last = sigma, learning_rate, first, last

    def apply(self, model: Any) -> Noise:
        """The noise of this model, a module to be trained with it. ModelError when it has no such layers."""
        decoder = model.get_decoder()
        stacks = [child for child in decoder.children() if isinstance(child, nn.ModuleList)]
        if len(stacks) != 1:
            raise ModelError(
                f"{type(decoder).__name__} has {len(stacks)} lists of layers, expected one: noise cannot be added to its "
                "layers. Use another model, or leave algorithm.perturb out."
            )
        last = len(stacks[0]) if self.last is None else self.last
        if not self.first < last <= len(stacks[0]):
            raise ModelError(
                f"algorithm.perturb: layers {self.first} up to {last} are asked for, the model has {len(stacks[0])}. Expected "
                "first < last, and last at most that."
            )
        return Noise(model, {i: stacks[0][i] for i in range(self.first, last)}, self.sigma, self.learning_rate)


class Noise(nn.Module):
    """One learned size a layer, and hooks that add the noise inside `keyed` and nowhere else."""

    def __init__(self, model: Any, layers: dict[int, nn.Module], sigma: float, learning_rate: float):
        super().__init__()
        self.log_coef = nn.Parameter(torch.full((len(layers),), float(sigma)).log())
        self.learning_rate = learning_rate
        self.codes: Tensor | None = None
        for place, (index, layer) in enumerate(layers.items()):
            layer.register_forward_pre_hook(partial(self._add, place, index))
        if model.is_gradient_checkpointing:  # the backward pass runs the layers again, long after `keyed` has ended
            again = {"use_reentrant": False, "context_fn": self._contexts}
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=again)

    def draw(self, rows: Any, seed: int) -> Draw:
        """The noise of one pass over forward.Rows, which have keys."""
        if rows.keys is None:
            raise ValueError("a perturbed pass needs Rows.keys")
        codes = []
        for context, response, key in zip(rows.contexts, rows.responses, rows.keys, strict=True):
            where = torch.arange(len(context) + len(response))
            parts = [_codes(seed, digest(context), where[: len(context)]), _codes(seed, key, where[len(context) :])]
            codes.append(torch.cat(parts))
        return Draw(self, codes)

    def keyed(self, codes: Tensor) -> Keyed:
        """Inside, the layers add the noise of these codes, one for each position of their input."""
        return Keyed(self, codes)

    def _add(self, place: int, index: int, layer: nn.Module, inputs: tuple) -> tuple | None:
        if self.codes is None:
            return None
        return _Perturbed.apply(inputs[0], self.log_coef[place], _hash64(self.codes ^ index)), *inputs[1:]

    def _contexts(self) -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
        """Of a checkpointed layer's forward pass and of its recomputation."""
        return contextlib.nullcontext(), Keyed(self, self.codes)


class Keyed(contextlib.AbstractContextManager):
    """See `Noise.keyed`. Can be entered again, since a graph that is kept is recomputed more than once."""

    def __init__(self, noise: Noise, codes: Tensor | None):
        self.noise, self.inner, self.outer = noise, codes, None

    def __enter__(self) -> None:
        self.outer, self.noise.codes = self.noise.codes, self.inner

    def __exit__(self, *_: object) -> None:
        self.noise.codes = self.outer


class Draw(NamedTuple):
    """The noise of one pass: of each row a code [context + response] for every position.

    A context's codes hang on its tokens alone, so that rows that share it share its noise; a response's on the row's key.
    """

    noise: Noise
    codes: list[Tensor]


class _Perturbed(torch.autograd.Function):
    """hidden + exp(log_coef) · noise, the noise drawn again in the backward pass instead of kept."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, log_coef: Tensor, codes: Tensor) -> Tensor:
        ctx.save_for_backward(log_coef, codes)
        return hidden + (log_coef.exp() * normals(codes, hidden.shape[-1])).to(hidden.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        log_coef, codes = ctx.saved_tensors
        return grad, log_coef.exp() * (grad * normals(codes, grad.shape[-1])).sum(), None


def normals(codes: Tensor, width: int) -> Tensor:
    """[..., width] fp32 standard normals of int64 codes [...]: equal codes give equal rows, any others unrelated ones."""
    half = -(-width // 2)
    units = _hash32(torch.arange(1, 2 * half + 1, dtype=torch.int32, device=codes.device))
    words = codes.contiguous()[..., None].view(torch.int32)
    radius = (-2.0 * _uniform(_hash32(words[..., :1] ^ units[:half])).log()).sqrt()
    angle = 2.0 * math.pi * _uniform(_hash32(words[..., 1:] ^ units[half:]))
    return torch.cat([radius * angle.cos(), radius * angle.sin()], -1)[..., :width]


def digest(ids: Sequence[int]) -> int:
    """A signed 64-bit number that stands for these tokens on every machine."""
    return int.from_bytes(hashlib.blake2b(array("q", ids).tobytes(), digest_size=8).digest(), "little", signed=True)


def _codes(seed: int, source: int, positions: Tensor) -> Tensor:
    return _hash64(_hash64(_hash64(torch.tensor(seed)) ^ source) ^ positions)


def _signed(number: int, bits: int) -> int:
    return number - (1 << bits) if number >> (bits - 1) else number


def _hash64(x: Tensor) -> Tensor:
    """Splitmix64's finaliser of int64; the masks make shifts logical."""
    x = x + _signed(0x9E3779B97F4A7C15, 64)
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _signed(0xBF58476D1CE4E5B9, 64)
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _signed(0x94D049BB133111EB, 64)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def _hash32(x: Tensor) -> Tensor:
    """A 32-bit mixer of int32 (two multiplications, three shifts; constants of the public-domain 'lowbias32')."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x7FEB352D
    x = (x ^ ((x >> 15) & 0x1FFFF)) * _signed(0x846CA68B, 32)
    return x ^ ((x >> 16) & 0xFFFF)


def _uniform(bits: Tensor) -> Tensor:
    """In (0, 1] fp32, of the upper 24 bits of int32."""
    return (((bits >> 8) & 0xFFFFFF).float() + 0.5) * 2.0**-24
