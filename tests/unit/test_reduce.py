import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from llmrl.algorithm import REDUCTIONS
from llmrl.ops.reduce import reduce_tokens, reduce_units, row_coefficients

WORKED = {  # -A·logprobs: sums 2, -2.9, 1.2, -0.55 over 3, 2, 3, 1 tokens
    "token_mean": -0.0277778,
    "sequence_sum": -0.0625,
    "sequence_mean": -0.233333,
    "fixed_length": -0.0208333,
    "group_mean": -0.00875,
}
GRADIENTS = {  # of one token of each row
    "token_mean": [-0.1111111, 0.1111111, -0.0555556, 0.0555556],
    "sequence_sum": [-0.25, 0.25, -0.125, 0.125],
    "sequence_mean": [-0.0833333, 0.125, -0.0416667, 0.125],
    "fixed_length": [-0.0833333, 0.0833333, -0.0416667, 0.0416667],
    "group_mean": [-0.1, 0.1, -0.0625, 0.0625],
}


def reduced(values, mask, mode, group_ids, max_length=3, weights=None):
    return reduce_tokens(values, mask, row_coefficients(mode, mask.sum(1), group_ids, max_length), weights)


@pytest.mark.parametrize("mode", REDUCTIONS)
def test_worked_values_and_gradients(worked, mode):
    mask = worked["loss_mask"]
    total = reduced(-worked["advantages"] * worked["logprobs"], mask, mode, worked["group_ids"])
    total.backward()
    assert_close(total, tensor(WORKED[mode]), rtol=1e-5, atol=1e-6)
    assert_close(worked["logprobs"].grad, tensor(GRADIENTS[mode])[:, None] * mask, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode, expected", [("token_mean", 0.76), ("sequence_sum", 1.9), ("sequence_mean", 0.808333)])
def test_negative_log_likelihood_of_two_answers(mode, expected):
    logprobs = tensor([[-0.5, -1.0, -0.2], [-2.0, -0.1, 0.0]])
    mask = tensor([[True] * 3, [True, True, False]])
    assert_close(reduced(-logprobs, mask, mode, tensor([0, 1])), tensor(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", REDUCTIONS)
def test_an_empty_row_leaves_the_divisor_but_for_the_fixed_length(worked, mode):
    given = (worked["logprobs"].detach(), worked["loss_mask"], worked["group_ids"])
    more = [torch.cat([x, torch.zeros_like(x[:1])]) for x in given]
    share = 4 / 5 if mode == "fixed_length" else 1.0
    assert_close(reduced(more[0], more[1], mode, more[2]), share * reduced(given[0], given[1], mode, given[2]))


def test_a_prompt_without_a_token_leaves_the_divisor_of_the_group_mean():
    values, mask = tensor([[4.0, 4.0], [9.0, 9.0]]), tensor([[True, True], [False, False]])
    assert reduced(values, mask, "group_mean", tensor([0, 1])) == 4


@pytest.mark.parametrize("mode", REDUCTIONS)
def test_nothing_counted_is_zero_with_the_graph_in_place(mode):
    values = torch.full((2, 3), float("nan"), requires_grad=True)
    total = reduced(values, torch.zeros(2, 3, dtype=torch.bool), mode, tensor([0, 0]))
    total.backward()
    assert total == 0 and (values.grad == 0).all()


def test_weights_leave_the_divisor_alone():
    values, mask = tensor([[3.0, 5.0], [7.0, float("nan")]]), tensor([[True, True], [True, False]])
    weights = tensor([[0.0, 2.0], [1.0, float("inf")]])
    # (0·3 + 2·5 + 1·7) / 3 tokens
    assert_close(reduced(values, mask, "token_mean", tensor([0, 1]), weights=weights), tensor(17 / 3))


def test_units_are_divided_by_the_count_of_the_whole_batch():
    assert reduce_units(tensor([3.0, 5.0]), 4) == 2
    assert reduce_units(torch.zeros(0), 0) == 0


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="'mean'"):
        row_coefficients("mean", tensor([1]), tensor([0]), 3)
