"""Scorers of every shape, and what becomes of those that fail."""

import asyncio
import math

import pytest

from llmrl.config import Scoring
from llmrl.errors import CatalogError, RecipeError, ScoringError
from llmrl.scoring import Scorer, make_scorer, make_scorers, score, shape_of, usable
from llmrl.types import Group, Prompt, Rollout, Score

TOLERANT = Scoring(max_error_share=1.0)


def text_group(id, texts, **columns):
    prompt = Prompt(id, text=f"question {id}", reference=columns.get("answer"), columns=columns)
    return Group(prompt, tuple(Rollout(ids=(i, 9), text=text) for i, text in enumerate(texts)))


def chat_group(id, texts, **columns):
    turns = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": f"question {id}"})
    return Group(Prompt(id, messages=turns, columns=columns), tuple(Rollout(ids=(1,), text=text) for text in texts))


def as_scorer(function, name="judge"):
    return Scorer(name, function, shape_of(function, name))


def judged(groups, *functions, config=TOLERANT):
    """value or error of the one scorer, rollout by rollout."""
    scored = score(groups, [as_scorer(function) for function in functions], config)
    return [one["judge"].error or one["judge"].value for group in scored for one in group.scores]


def length(prompt, rollout, *, scale: float = 1.0):
    return Score(len(rollout.text) * scale, feedback=f"{prompt.id} says {rollout.text}")


async def slow_length(prompt, rollout, *, wait: float = 0.0):
    await asyncio.sleep(wait)
    return Score(len(rollout.text))


def rank(group, *, best: float = 1.0):
    longest = max(len(rollout.text) for rollout in group.rollouts)
    return [Score(best if len(rollout.text) == longest else 0.0) for rollout in group.rollouts]


def test_a_rollout_scorer_sees_its_prompt_and_rollout():
    (group,) = score([text_group("p", ["a", "bcd"])], [as_scorer(length)], Scoring())
    assert [one["judge"].value for one in group.scores] == [1.0, 3.0]
    assert group.scores[1]["judge"].feedback == "p says bcd"


def test_several_scorers_each_fill_in_their_name_in_the_order_given():
    scorers = [as_scorer(slow_length, "late"), as_scorer(length, "early")]
    (group,) = score([text_group("p", ["ab"])], scorers, Scoring())
    assert list(group.scores[0]) == ["late", "early"]


def test_a_group_scorer_answers_for_all_siblings_of_one_prompt():
    assert judged([text_group("p", ["a", "bb"]), text_group("q", ["ccc", "d"])], rank) == [0.0, 1.0, 1.0, 0.0]


def test_trl_reward_function_gets_strings_for_text_prompts_and_columns_repeated_per_completion():
    seen = {}

    def reward(prompts, completions, answer, **kwargs):
        seen.update(kwargs, prompts=prompts, completions=completions, answer=answer)
        return [float(a == c) for a, c in zip(answer, completions, strict=True)]

    groups = [text_group("p", ["7", "8"], answer="8", level=1), text_group("q", ["5"], answer="5", level=2)]
    assert judged(groups, reward) == [0.0, 1.0, 1.0]
    assert seen["prompts"] == ["question p", "question p", "question q"]
    assert seen["answer"] == ["8", "8", "5"] and seen["level"] == [1, 1, 2]
    assert seen["completion_ids"] == [[0, 9], [1, 9], [0, 9]] and seen["reference"] == ["8", "8", "5"]


def test_trl_reward_function_gets_message_lists_for_conversations_and_only_what_its_signature_takes():
    def reward(completions, level):
        return [level[i] * len(turn[0]["content"]) for i, turn in enumerate(completions)]

    def last_turns(prompts, **kwargs):
        assert kwargs["completions"][0] == [{"role": "assistant", "content": "abc"}]
        return [float(turns[-1] == {"role": "user", "content": "question p"}) for turns in prompts]

    assert judged([chat_group("p", ["abc"], level=2, other=0)], reward) == [6]
    assert judged([chat_group("p", ["abc"])], last_turns) == [1.0]


def test_a_function_out_of_trl_runs_unchanged():
    rewards = pytest.importorskip("trl.rewards")
    texts = ["<think>\nThis is my reasoning.\n</think>\nThis is my answer.", "no thoughts"]
    assert judged([chat_group("p", texts)], rewards.think_format_reward) == [1.0, 0.0]


def test_a_trl_function_cannot_change_the_prompt():
    def vandal(prompts, completions):
        prompts[0][0]["content"] = "spoiled"
        return [0.0]

    group = chat_group("p", ["a"])
    judged([group], vandal)
    assert group.prompt.messages[0]["content"] == "Be brief."


def test_none_from_a_trl_function_means_does_not_apply():
    (group,) = score([text_group("p", ["a", "b"])], [as_scorer(lambda completions: [None, 1])], Scoring())
    assert group.scores[0]["judge"] == Score(None) and group.scores[1]["judge"] == Score(1.0)


def test_asynchronous_scorers_run_together_in_one_loop():
    loops, running, most = set(), 0, 0

    async def judge(prompt, rollout):
        nonlocal running, most
        loops.add(id(asyncio.get_running_loop()))
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return Score(1.0)

    async def reward(completions):
        loops.add(id(asyncio.get_running_loop()))
        return [1.0 for _ in completions]

    groups = [text_group("p", ["a"] * 20)]
    scored = score(groups, [as_scorer(judge, "one"), as_scorer(reward, "two")], Scoring())
    assert most == 20 and len(loops) == 1
    assert all(one["one"].value == one["two"].value == 1.0 for one in scored[0].scores)


def test_asynchronous_scorers_run_where_a_loop_runs_already():
    async def notebook():
        return judged([text_group("p", ["abc"])], slow_length)

    assert asyncio.run(notebook()) == [3.0]


def test_a_late_answer_is_an_error_and_leaves_the_others_alone():
    async def judge(prompt, rollout):
        await asyncio.sleep(5.0 if rollout.text == "late" else 0.0)
        return Score(1.0)

    config = Scoring(timeout=0.05, max_error_share=1.0)
    assert judged([text_group("p", ["late", "early"])], judge, config=config) == ["no answer within 0.05 s", 1.0]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Score(math.nan), "value is nan, expected a finite number or None"),
        (Score(-math.inf), "value is -inf, expected a finite number or None"),
        (Score("1.0"), "value is '1.0', expected a finite number or None"),
        (Score(10**400), "value is 1000"),
        (0.5, "returned float, expected a Score"),
        (None, "returned NoneType, expected a Score"),
    ],
)
def test_what_is_no_finite_number_is_an_error_and_never_a_zero(answer, reason):
    (group,) = score([text_group("p", ["a"])], [as_scorer(lambda prompt, rollout: answer)], TOLERANT)
    assert group.scores[0]["judge"].value is None
    assert group.scores[0]["judge"].error.startswith(reason)


def test_a_raise_is_an_error_of_that_rollout_alone():
    def judge(prompt, rollout):
        return Score(1.0 / len(rollout.text))

    assert judged([text_group("p", ["", "ab"])], judge) == ["ZeroDivisionError: float division by zero", 0.5]


def test_a_wrong_count_names_the_function_and_both_counts():
    answer = ["ValueError: judge returned 1 scores for 2 rollouts"] * 2
    assert judged([text_group("p", ["a", "b"])], lambda completions: [1.0]) == answer
    assert judged([text_group("p", ["a", "b"])], lambda group: [Score(1.0)]) == answer


def test_one_bad_entry_of_a_trl_function_leaves_the_others():
    assert judged([text_group("p", ["a", "b"])], lambda completions: [math.nan, True]) == [
        "value is nan, expected a finite number or None",
        1.0,
    ]


def test_retry_asks_once_more_and_only_for_what_failed():
    calls = []

    def flaky(prompt, rollout):
        calls.append(rollout.text)
        if calls.count(rollout.text) == 1 and rollout.text != "good":
            raise OSError("busy")
        if rollout.text == "bad":
            raise OSError("still busy")
        return Score(1.0)

    config = Scoring(on_error="retry", max_error_share=1.0)
    assert judged([text_group("p", ["good", "second", "bad"])], flaky, config=config) == [
        1.0,
        1.0,
        "OSError: still busy",
    ]
    assert calls == ["good", "second", "second", "bad", "bad"]


def test_retry_reaches_asynchronous_scorers():
    calls = []

    async def flaky(completions):
        calls.append(len(completions))
        return [1.0, math.nan] if len(calls) == 1 else [5.0, 2.0]

    assert judged([text_group("p", ["a", "b"])], flaky, config=Scoring(on_error="retry")) == [1.0, 2.0]


def test_fail_stops_with_scorer_prompt_and_reason():
    def judge(prompt, rollout):
        raise RuntimeError("no judge there")

    with pytest.raises(ScoringError, match="scorer judge failed on prompt q7: RuntimeError: no judge there"):
        judged([text_group("q7", ["a"])], judge, config=Scoring(on_error="fail"))


def test_too_large_a_share_of_errors_stops_with_the_most_frequent_reason():
    def judge(prompt, rollout):
        if rollout.text == "fine":
            return Score(0.0)
        raise RuntimeError(rollout.text)

    half = text_group("p", ["fine", "fine", "down", "odd"])
    assert judged([half], judge, config=Scoring()) == [0.0, 0.0, "RuntimeError: down", "RuntimeError: odd"]
    most = [text_group("p", ["fine", "down"]), text_group("q", ["down", "odd"])]
    message = r"3 of 4 rollouts .* allows 0.5. Most often \(2 times\) scorer judge: RuntimeError: down"
    with pytest.raises(ScoringError, match=message):
        judged(most, judge, config=Scoring())


def test_usable():
    good, silent, broken = Score(0.0), Score(None), Score(None, error="late")
    assert usable({"a": good}) and usable({"a": good, "b": silent}) and usable({})
    assert not usable({"a": good, "b": broken}) and not usable({"a": silent, "b": Score(None, feedback="hm")})


def test_a_scorer_is_made_out_of_a_name_with_weight_and_options():
    scorer = make_scorer({"name": f"{__name__}:length", "weight": 0.2, "scale": 2.0})
    assert (scorer.name, scorer.weight, scorer.shape) == ("length", 0.2, "rollout")
    (group,) = score([text_group("p", ["abc"])], [scorer], Scoring())
    assert group.scores[0]["length"].value == 6.0
    assert make_scorer("math_answer").weight == 1.0


def test_an_option_of_a_trl_function_wins_over_the_column_of_its_name():
    scorer = make_scorer({"name": f"{__name__}:offset_reward", "offset": 3.0})
    (group,) = score([text_group("p", ["abc"], offset=100.0)], [scorer], Scoring())
    assert group.scores[0]["offset_reward"].value == 6.0


def offset_reward(completions, *, offset: float = 0.0, **kwargs):
    return [len(completion) + offset for completion in completions]


def needs_column(completions, *, answer):
    return [1.0 for _ in completions]


def needs_option(prompt, rollout, *, path: str):
    return Score(1.0)


def odd(text, gold):
    return 1.0


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (
            {"name": "math_answer", "boxd_only": True},
            "scorers.math_answer.boxd_only is not an option of math_answer. Did you mean boxed_only? "
            "Options: boxed_only, last_number, weight.",
        ),
        (
            {"name": "math_answer", "boxed_only": "yes"},
            "scorers.math_answer.boxed_only: found 'yes' (a string), expected true or false.",
        ),
        ({"name": "math_answer", "weight": "2"}, "scorers.math_answer.weight is '2'; expected a number."),
        ({"weight": 1.0}, "has no name. Expected a scorer's name"),
        (f"{__name__}:needs_option", "path is missing: "),
        (f"{__name__}:odd", "takes (text, gold). Expected (prompt, rollout), (group) or TRL's"),
    ],
)
def test_what_is_wrong_with_a_scorer_is_said_before_anything_runs(named, message):
    with pytest.raises(RecipeError) as caught:
        make_scorer(named)
    assert message in str(caught.value)


def test_a_keyword_without_default_asks_for_a_column_in_a_trl_function():
    assert make_scorer(f"{__name__}:needs_column").shape == "columns"


def test_unknown_and_doubled_scorers_are_refused():
    with pytest.raises(CatalogError, match="Did you mean math_answer?"):
        make_scorer("math_anser")
    with pytest.raises(RecipeError, match="math_answer is named 2 times"):
        make_scorers(["math_answer", {"name": "math_answer", "boxed_only": True}])
