"""reasoning-gym's tasks: which are refused and why; with the package installed, that rows and scores are right."""

from importlib.util import find_spec

import pytest

from llmrl.config import Data
from llmrl.data.formats import to_prompt
from llmrl.data.reasoning_gym import audited, reasoning_gym
from llmrl.data.reasoning_gym_audit import PASSED, REFUSED
from llmrl.errors import DataError
from llmrl.types import Prompt, Rollout
from reward_models.reasoning_gym import reasoning_gym as scorer

NUM_TASKS = 106  # of the audited version
needs_package = pytest.mark.skipif(find_spec("reasoning_gym") is None, reason="reasoning-gym is not installed")


def test_every_task_is_either_allowed_or_refused_with_a_reason():
    assert len(PASSED) + len(REFUSED) == NUM_TASKS == len(set(PASSED) | set(REFUSED))
    assert list(PASSED) == sorted(PASSED) and list(REFUSED) == sorted(REFUSED) and all(REFUSED.values())
    assert {"chain_sum", "letter_counting", "spell_backward"} <= set(PASSED)
    # known cases: evaluates what it gets, twice; takes anything; has no answers
    assert {"puzzle24", "n_queens", "game_of_life_halting", "boxnet"} <= set(REFUSED)


def test_refused_and_unknown_tasks_are_told_so():
    with pytest.raises(DataError, match="puzzle24 is refused: its scorer evaluates the answer"):
        reasoning_gym(task="puzzle24")
    with pytest.raises(DataError, match="chain_smu.* Did you mean chain_sum"):
        audited("chain_smu")


def test_a_prompt_of_a_refused_task_or_of_none_is_an_error():
    made = {"task": "puzzle24", "seed": 1, "index": 0, "config": {}}
    for columns, error in (({"reasoning_gym": made}, DataError), ({}, ValueError)):
        with pytest.raises(error):
            scorer(Prompt(id="p", text="?", columns=columns), Rollout((1,), "<answer>24</answer>"))


@pytest.mark.skipif(find_spec("reasoning_gym") is not None, reason="reasoning-gym is installed")
def test_without_the_package_the_next_move_is_said():
    with pytest.raises(DataError, match="pip install"):
        reasoning_gym(task="chain_sum", size=1)


@needs_package
def test_rows_are_fixed_by_the_seed_and_scored_like_their_own_scorer():
    rows = reasoning_gym(task="chain_sum", size=10, seed=2, config={"max_terms": 3})
    assert rows == reasoning_gym(task="chain_sum", size=10, seed=2, config={"max_terms": 3})
    test = reasoning_gym(task="chain_sum", size=10, seed=2, split="test", config={"max_terms": 3})
    assert not {row["prompt"][0]["content"] for row in rows} & {row["prompt"][0]["content"] for row in test}
    for number, row in enumerate(rows, 1):
        prompt = to_prompt(row, Data(source="x"), number)
        for text, value, share in [
            (f"<answer>{row['reference']}</answer>", 1.0, 1.0),
            (f"<answer>{row['reference']} 7</answer>", 0.0, None),
            (f"{row['reference']}", 0.0, 0.0),
        ]:
            assert scorer(prompt, Rollout((1,), text)).value == value
            if share is not None:
                assert scorer(prompt, Rollout((1,), text), binary=False).value == share


@needs_package
def test_a_prompt_that_is_not_its_entrys_is_an_error():
    row = reasoning_gym(task="chain_sum", size=1)[0]
    prompt = Prompt(id="p", text="Another question", columns={"reasoning_gym": row["reasoning_gym"]})
    with pytest.raises(ValueError, match="another version"):
        scorer(prompt, Rollout((1,), "<answer>1</answer>"))
