"""What every part that turns arrays into arrays must be: combiners, selections, advantages, shaping."""

from dataclasses import replace

import pytest
import torch
from inputs import FITTED, batch, emptied, spoiled, widened

from llmrl import catalog
from llmrl.batch import Batch, Credit, call
from llmrl.ops.masked import last_counted
from llmrl.options import bind
from llmrl.selections.selection import Selection

KINDS = ("combiners", "selections", "advantages", "shaping")
ROWS = [(kind, name) for kind in KINDS for name in catalog.table(kind)]
SPEAKS_WITHOUT_SPREAD = {  # group-relative estimator -> why a group without spread gets credit
    "polychromic": "equally right answers differ in what they add to a set's diversity",
    "dpp": "equally right answers differ in what they add to the group's diversity",
    "ahpo_gate": "no credit: it opens where a prompt's rollouts fail",
    "pvpo_gate": "credit of stored answers, not of rollouts",
    "asymre": "its shift is credit for whatever was sampled",
}
KEEPS_THE_FIRST = {
    "one_right_one_wrong": "the first of a group in the order of its rollouts, which is kept here",
    "disjoint_pairs": "rollouts two by two in their order",
    "red_drop": "what is dropped is drawn by the rollout's place among its siblings",
}
CREDITS_SOME = {"passk_top": "the best of a group alone has credit"}

RELATIVE = [
    name
    for name, path in catalog.table("advantages").items()
    if "group_ids" in catalog.inputs_of(catalog.get("advantages", path)) and name not in SPEAKS_WITHOUT_SPREAD
]

parts = pytest.mark.parametrize("kind, name", ROWS)


@pytest.fixture
def part(kind, name):
    return bind(catalog.get(kind, name), FITTED.get(name, {}))


def outputs(part, given: Batch) -> list[torch.Tensor]:
    """What the part gives, as tensors, 0 where nothing counts."""
    out = call(part, given, part.init())[0] if hasattr(part, "init") else call(part, given)
    if isinstance(out, Selection):
        found = [x for x in (out.keep, out.weights, out.loss_mask) if x is not None]
    elif isinstance(out, dict):
        found = list(out.values())
    else:
        found = list(out) if isinstance(out, Credit) else [out]
    mask = given.arrays["loss_mask"]
    return [torch.where(mask, x, torch.zeros_like(x)) if x.shape == mask.shape else x for x in found]


def assert_all_close(found, expected, **tolerance):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


@parts
def test_a_row_or_a_token_gets_one_finite_number(part):
    for seed in range(3):
        given = batch(seed)
        for x in outputs(part, given):
            assert x.shape in ((len(given),), given.arrays["loss_mask"].shape) and x.isfinite().all()
            assert not x.requires_grad


@parts
def test_what_stands_under_the_mask_does_not_matter(part):
    assert_all_close(outputs(part, spoiled(batch())), outputs(part, batch()), rtol=0, atol=0)


@parts
def test_padding_does_not_matter(part):
    cut = [x[:, :6] if x.dim() == 2 else x for x in outputs(part, widened(batch()))]
    assert_all_close(cut, outputs(part, batch()))


@parts
def test_groups_go_by_id_and_not_by_place(part, name):
    order = [7, 1, 0, 6, 3, 2, 4, 5] if name not in KEEPS_THE_FIRST else [6, 1, 0, 7, 3, 2, 4, 5]
    moved = outputs(part, batch().take(order))
    assert_all_close(moved, [x[order] for x in outputs(part, batch())])


@parts
def test_other_ids_for_the_same_groups_do_not_matter(part):
    given = batch()
    renamed = replace(given, arrays=given.arrays | {"group_ids": 1000 - given.arrays["group_ids"]})
    assert_all_close(outputs(part, renamed), outputs(part, given))


@parts
def test_an_empty_mask_gives_zero_and_no_nan(part, kind):
    for x in outputs(part, emptied(batch())):
        assert x.isfinite().all() and (x.dim() == 1 or (x == 0).all())


@parts
def test_a_rank_may_have_no_rows(part):
    nothing = batch().take([])
    assert all(len(x) == 0 for x in outputs(part, nothing))


@parts
def test_half_precision_stays_near(part):
    given = batch()

    def rounded(dtype: torch.dtype) -> Batch:
        half = {k: v.bfloat16().to(dtype) if v.is_floating_point() else v for k, v in given.arrays.items()}
        return replace(given, arrays=half)

    for one, other in zip(outputs(part, rounded(torch.bfloat16)), outputs(part, rounded(torch.float32)), strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one.to(other.dtype), other, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", RELATIVE)
@pytest.mark.parametrize("reward", [0.9, 1.0, -1e6, 1e-9])  # three times 0.9 in fp32, divided by 3, is not 0.9
def test_a_group_without_spread_gets_exactly_zero(name, reward):
    part = bind(catalog.get("advantages", name), FITTED.get(name, {}))
    given = batch()
    elsewhere = given.arrays["group_ids"] != 3
    ends = reward * last_counted(given.arrays["loss_mask"])
    flat = {"rewards": torch.full((8,), reward), "reward_parts": torch.full((8, 3), reward), "token_rewards": ends}
    changed = {n: torch.where(elsewhere.view(-1, *[1] * (x.dim() - 1)), x, given.arrays[n]) for n, x in flat.items()}
    (credit,) = outputs(part, replace(given, arrays=given.arrays | changed))
    heard = credit[~elsewhere] != 0
    assert (credit[elsewhere] == 0).all() and heard.any()
    assert heard.all() or credit.dim() == 2 or name in CREDITS_SOME


@pytest.mark.parametrize("name", catalog.table("advantages"))
def test_a_part_that_needs_siblings_gives_nothing_without_and_says_so(name):
    part = bind(catalog.get("advantages", name), FITTED.get(name, {}))
    declared = bool(getattr(catalog.unwrap(part), "needs_siblings", False))
    try:
        credit = outputs(part, batch().take([0, 1, 6]))[0]
    except ValueError as error:
        assert declared and "rollout.group_size" in str(error)
    else:
        assert bool((credit == 0).all()) == declared
