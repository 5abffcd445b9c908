"""Tokens out of distributions by noise that is fixed beforehand: engines that share both give the same answers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

WHOLE = 4096  # words of a vocabulary up to which one running sum in float64 is the cheapest
BLOCK = 128  # of a larger one, words that are added up first


def uniforms(seeds: Sequence[int], num_samples: int, length: int) -> Tensor:
    """[len(seeds)·num_samples, length] float64 in [0,1): row (p, i) depends on seeds[p] and i alone."""
    rows = []
    for seed in seeds:
        for i in range(num_samples):
            digest = hashlib.blake2b(f"{seed}/{i}".encode(), digest_size=8).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
            rows.append(torch.rand(length, generator=generator, dtype=torch.float64))
    return torch.stack(rows)


def inverted(probabilities: Tensor, noise: Tensor) -> Tensor:
    """[n]: the tokens at which the distribution functions of `probabilities` [n,V] fp32 pass `noise` [n], float64 in [0,1).

    Never a token of probability 0. A large vocabulary is added up in blocks in fp32, the blocks in float64.
    """
    rows, size = probabilities.shape
    if size <= WHOLE:
        return _passed(probabilities, noise)[0]
    if size % BLOCK:
        probabilities = torch.nn.functional.pad(probabilities, (0, -size % BLOCK))
    blocks = probabilities.view(rows, -1, BLOCK)
    block, rest = _passed(blocks.sum(-1), noise)
    inside = blocks[torch.arange(rows, device=block.device), block]
    return block * BLOCK + _passed(inside, rest)[0]


def _passed(weights: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """(which of the weights [n,m] the share `noise` [n] of their sum falls on, how far into it that lies, in [0,1))."""
    ends = weights.cumsum(-1, dtype=torch.float64)
    wanted = noise[:, None] * ends[:, -1:]
    found = torch.searchsorted(ends, wanted, right=True).clamp(max=weights.shape[1] - 1)
    weight = weights.gather(1, found).double()
    rest = (wanted - ends.gather(1, found) + weight) / weight
    return found.squeeze(1), rest.squeeze(1).clamp(0.0, 1.0 - 2.0**-53)
