import warnings

import pytest
import torch
from torch.testing import assert_close

from llmrl.policy import decoding
from llmrl.policy.decoding import CachedRows, Prefilled, SharedPrompts, can_share
from llmrl.policy.forward import base_model

PROMPTS = [(5, 20, 33, 47, 9, 60, 71), (12,), (90, 91, 17, 44)]


@pytest.fixture
def model(make_policy):
    return make_policy().model.eval()


@torch.no_grad()
def test_shared_prompts_give_the_states_of_rows_with_a_cache_of_their_own(model):
    """Prompts of unequal length, rows that leave, one prompt without any rows left, more tokens than memory at first."""
    trunk = base_model(model).get_decoder()
    prefilled = Prefilled(trunk, PROMPTS, torch.device("cpu"))
    owners = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    ours, theirs = SharedPrompts(trunk, prefilled, owners), CachedRows(trunk, prefilled, owners)
    leave = {3: [0, 2, 3, 4, 5, 6, 8], 10: [0, 1, 5], 20: [1, 2], 38: [1]}  # at 10 the second prompt loses its last row
    rows = len(owners)
    for t in range(decoding.ROOM + 12):
        if t in leave:
            rows = len(leave[t])
            for decoder in (ours, theirs):
                decoder.keep(torch.tensor(leave[t]))
        token = torch.randint(0, 100, (rows,), generator=torch.Generator().manual_seed(t))
        assert_close(ours.step(token), theirs.step(token), atol=2e-5, rtol=1e-4)
    assert ours.lengths.tolist() == [4] and len(ours.own[0][0]) == 1  # what is gone takes no memory


def test_prompts_are_shared_where_that_is_checked_to_be_right(model, monkeypatch):
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        assert can_share(model, 512, "fp32")
        monkeypatch.setattr(base_model(model).config, "sliding_window", 300)
        assert not can_share(model, 512, "fp32")
        assert can_share(model, 300, "fp32")


@torch.no_grad()
@pytest.mark.parametrize(
    "attend, said",
    [
        (lambda self, layer, q, k, v, scale: q, "states differ by"),
        (lambda self, layer, q, k, v, scale: q / 0, "states differ by nan"),
        (lambda self, layer, q, k, v, scale: self.prompts[99], "IndexError"),
    ],
)
def test_a_model_that_cannot_share_says_so_and_gets_rows_of_its_own(model, monkeypatch, attend, said):
    monkeypatch.setattr(SharedPrompts, "attend", attend)
    with pytest.warns(UserWarning, match=said):
        assert not can_share(model, 512, "fp32")
