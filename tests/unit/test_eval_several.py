"""pass@k and maj@k against enumeration of every draw in every order."""

import itertools

import pytest

from llmrl.ops.several import majority_at_k, pass_at_k


@pytest.mark.parametrize("num_samples", [1, 4, 6])
def test_pass_at_k_equals_enumeration(num_samples):
    for correct in range(num_samples + 1):
        outcomes = [i < correct for i in range(num_samples)]
        for k in range(1, num_samples + 1):
            draws = [any(draw) for draw in itertools.combinations(outcomes, k)]
            assert pass_at_k(num_samples, correct, k) == pytest.approx(sum(draws) / len(draws), abs=1e-12)


def test_pass_at_k_refuses_impossible_counts():
    for wrong in [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0)]:
        with pytest.raises(ValueError, match="expected both within"):
            pass_at_k(*wrong)


def drawn(answers, right, k):
    """Every ordered draw of k: the first seen of the most frequent answers, None being none."""
    wins = 0
    draws = list(itertools.permutations(range(len(answers)), k))
    for draw in draws:
        seen = [answers[i] for i in draw if answers[i] is not None]
        most = max((seen.count(one) for one in seen), default=0)
        winner = next((one for one in seen if seen.count(one) == most), None)
        wins += winner is not None and winner in right
    return wins / len(draws)


CASES = [
    (["r"], ["r"]),
    (["r", "a", "b", None], ["r"]),
    (["r", "r", "a", "a", "b", "b"], ["r"]),
    (["r", "a", "a", None, None, "b"], ["r"]),
    (["r", "s", "a", "a", "s", None], ["r", "s"]),
    ([None, None, None], []),
    (["a", "a", "r", "r", "r", "b", "b"], ["r", "not given"]),
]


@pytest.mark.parametrize(("answers", "right"), CASES)
def test_majority_at_k_equals_every_draw_in_every_order(answers, right):
    for k in range(1, len(answers) + 1):
        assert majority_at_k(answers, right, k) == pytest.approx(drawn(answers, right, k), abs=1e-12)


def test_majority_of_one_is_the_mean_and_order_does_not_matter():
    answers = ["r", "a", "r", None, "b", "r", "a"]
    assert majority_at_k(answers, ["r"], 1) == pytest.approx(3 / 7)
    assert majority_at_k(answers[::-1], ["r"], 4) == majority_at_k(answers, ["r"], 4)


def test_sixty_four_samples_of_many_answers_take_no_drawing():
    answers = [i % 23 for i in range(64)]
    assert 0 < majority_at_k(answers, [0], 16) < 1


def test_majority_refuses_an_impossible_k():
    with pytest.raises(ValueError, match="expected 1 <= k"):
        majority_at_k(["a"], [], 2)
