"""Tokens by inversion: the right share of the noise for each, in small vocabularies and in blocks of large ones."""

import pytest
import torch

from llmrl.rollout.draw import BLOCK, WHOLE, inverted

SIZES = [5, WHOLE, WHOLE + 1, WHOLE + BLOCK, 3 * WHOLE + 77]


def spread(size, rows=6):
    logits = 3 * torch.randn(rows, size, generator=torch.Generator().manual_seed(size))
    return logits.softmax(-1)


@pytest.mark.parametrize("size", SIZES)
def test_a_token_is_drawn_by_the_share_of_noise_that_it_has(size):
    probabilities = spread(size)
    ends = probabilities.cumsum(-1, dtype=torch.float64)
    for token in (0, 1, size // 2, size - 1):
        start, end = ends[:, token] - probabilities[:, token], ends[:, token]
        for share in (0.01, 0.5, 0.99):  # of the way through the token: sums in fp32 are good to 1e-6 of them all
            noise = (start + share * (end - start)) / ends[:, -1]
            sure = (share if share < 0.5 else 1 - share) * probabilities[:, token] > 2e-6
            assert (inverted(probabilities, noise)[sure] == token).all()
    noise = torch.rand(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.searchsorted(ends, (noise * ends[:, -1])[:, None], right=True)[:, 0]
    assert torch.equal(inverted(probabilities, noise), expected)


@pytest.mark.parametrize("size", SIZES)
def test_rows_do_not_see_each_other(size):
    probabilities, noise = spread(size), torch.rand(6, dtype=torch.float64)
    alone = [int(inverted(probabilities[i : i + 1], noise[i : i + 1])) for i in range(6)]
    assert inverted(probabilities, noise).tolist() == alone


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0 - 2.0**-53])
def test_no_token_without_probability_is_drawn(size, noise):
    probabilities = spread(size)
    probabilities[:, ::2] = 0
    probabilities[0] = 0
    probabilities[0, 3] = 1
    found = inverted(probabilities, torch.full((6,), noise, dtype=torch.float64))
    assert (probabilities.gather(1, found[:, None]) > 0).all() and found[0] == 3


def test_frequencies_are_the_probabilities():
    size, draws = WHOLE + 5, 200_000
    weights = torch.zeros(size)
    places = torch.tensor([0, BLOCK - 1, BLOCK, 2000, size - 1])
    weights[places] = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05])
    noise = torch.rand(draws, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = torch.cat([inverted(weights.expand(1000, -1), part) for part in noise.split(1000)])
    counts = torch.bincount(found, minlength=size)[places] / draws
    # five standard errors of the largest, sqrt(0.4 * 0.6 / 200,000) = 0.0011
    assert (counts - weights[places]).abs().max() < 0.0055
