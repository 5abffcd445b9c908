"""Credit over the rows of all ranks, here two threads that exchange what two processes would."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from threading import Barrier

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from llmrl.advantages.gae import gae
from llmrl.advantages.group import standardised
from llmrl.algorithm import Algorithm
from llmrl.batch import Batch
from llmrl.combiners.kl_in_reward import kl_in_reward
from llmrl.combiners.weighted_sum import weighted_sum
from llmrl.objectives.likelihood import likelihood
from llmrl.selections.contrast import one_right_one_wrong
from llmrl.training.credit import assign_credit, early_and_late, needs_passes, reward, selected
from llmrl.training.ranks import Ranks
from llmrl.types import Sample


class Together(Ranks):
    """One of several ranks in threads; `gather` is the only way they speak."""

    def __init__(self, rank, size, shelf, barrier):
        self.rank, self.size, self.shelf, self.barrier = rank, size, shelf, barrier

    def gather(self, value):
        self.shelf[self.rank] = value
        self.barrier.wait(timeout=20)
        values = list(self.shelf)
        self.barrier.wait(timeout=20)
        return values


def on_ranks(step, batches):
    """Call step(batch, ranks) on every rank at once and return what each gives."""
    barrier, shelf = Barrier(len(batches)), [None] * len(batches)
    with ThreadPoolExecutor(len(batches)) as pool:
        ranks = [Together(i, len(batches), shelf, barrier) for i in range(len(batches))]
        return list(pool.map(step, batches, ranks))


def rows(seed=0, count=6):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(5) < tensor([5, 2, 4, 0, 1, 3])[:count, None]
    arrays = {
        "loss_mask": mask,
        "group_ids": tensor([4, 4, 9, 9, 4, 9])[:count],
        "reward_parts": torch.randn(count, 2, generator=generator),
    }
    arrays |= {n: torch.randn(count, 5, generator=generator) for n in ("old_values", "old_logprobs", "ref_logprobs")}
    samples = [Sample((1,), (1,), (2,) * int(n), (True,) * int(n)) for n in mask.sum(1)]
    return Batch(samples, arrays, constants={"reward_weights": tensor([1.0, 0.5])})


def share(batch, chosen, width):
    """The rows one rank holds, no wider than its own longest answer."""
    part = batch.take(chosen)
    return replace(part, arrays={k: v[:, :width] if v.shape[1:] == (5,) else v for k, v in part.arrays.items()})


def credited(algorithm, batch, ranks):
    reward(batch, algorithm.combine, ranks)
    assign_credit(batch, algorithm, ranks)
    return batch.arrays["advantages"]


GROUP = Algorithm(objective=(likelihood,), combine=(weighted_sum,), advantage=standardised)
CRITIC = Algorithm(objective=(likelihood,), combine=(weighted_sum, kl_in_reward), advantage=gae)


@pytest.mark.parametrize("algorithm", [GROUP, CRITIC])
@pytest.mark.parametrize("parts", [[([0, 2, 5], 5), ([1, 3, 4], 2)], [([0, 1, 2, 3, 4, 5], 5), ([], 1)]])
def test_statistics_are_those_of_all_ranks_in_whatever_parts_the_rows_come(algorithm, parts):
    whole = credited(algorithm, rows(), Ranks())
    found = on_ranks(partial(credited, algorithm), [share(rows(), *part) for part in parts])
    for advantages, (chosen, width) in zip(found, parts, strict=True):
        assert_close(advantages, whole[chosen, :width])


def test_one_number_a_row_is_laid_on_its_counted_tokens():
    batch = rows()
    advantages = credited(GROUP, batch, Ranks())
    each = standardised(batch.arrays["rewards"], batch.arrays["group_ids"])
    mask = batch.arrays["loss_mask"]
    assert_close(advantages, each[:, None] * mask)
    assert (advantages[~mask] == 0).all() and (advantages[0] != 0).all()


def test_without_a_penalty_the_critic_sees_the_reward_on_the_last_token():
    batch = rows()
    batch.arrays["rewards"] = tensor([1.0, 2, 3, 4, 5, 6])
    assign_credit(batch, replace(CRITIC, combine=()), Ranks())
    assert_close(batch.arrays["token_rewards"][:3], tensor([[0.0, 0, 0, 0, 1], [0, 2, 0, 0, 0], [0, 0, 0, 3, 0]]))
    assert (batch.arrays["token_rewards"][3] == 0).all() and "returns" in batch.arrays


def test_combiners_write_by_the_shape_of_what_they_give():
    batch = rows()
    reward(batch, [weighted_sum, kl_in_reward], Ranks())
    assert batch.arrays["rewards"].shape == (6,) and batch.arrays["token_rewards"].shape == (6, 5)
    assert needs_passes(kl_in_reward) and not needs_passes(weighted_sum)


def test_combiners_keep_their_order_around_the_passes():
    assert early_and_late([weighted_sum]) == ([weighted_sum], [])
    assert early_and_late([weighted_sum, kl_in_reward, weighted_sum]) == ([weighted_sum], [kl_in_reward, weighted_sum])


def test_shaping_reads_the_advantages_before_it_and_replaces_them():
    def doubled(advantages):
        return 2 * advantages

    plain = credited(GROUP, rows(), Ranks())
    assert_close(credited(replace(GROUP, shaping=(doubled, doubled)), rows(), Ranks()), 4 * plain)


def test_each_rank_keeps_its_own_rows_of_a_selection_over_all():
    def chosen(batch, ranks):
        return selected(batch, [one_right_one_wrong], ranks)[0]

    whole = rows()
    whole.arrays["rewards"] = tensor([1.0, 0, 1, 1, 0, 1])  # group 4: 1 0 0, group 9: 1 1 1
    assert chosen(whole, Ranks()) == [0, 1]
    found = on_ranks(chosen, [share(whole, [0, 2, 5], 5), share(whole, [1, 3, 4], 2)])
    assert found == [[0], [0]]


def test_without_a_selection_every_row_stays():
    assert selected(rows(), [], Ranks()) == ([0, 1, 2, 3, 4, 5], 0)
