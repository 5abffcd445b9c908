"""Scoring while others still write: the same scores, sooner, and nobody is late for the trainer's not looking."""

import asyncio
import itertools
import os
import random
import time
from pathlib import Path

import pytest

from llmrl.config import Scoring
from llmrl.errors import ScoringError
from llmrl.limits import DEFAULT
from llmrl.pool import Pool
from llmrl.pool.round import Call, Round
from llmrl.scoring import Judging, scorer, source_of
from llmrl.scoring import score as score_at_once
from llmrl.types import Group, Prompt, Rollout, Sampling, Score

PATIENCE = 60.0  # seconds after which a test that waits for an event gives up
TOLERANT = Scoring(max_error_share=1.0)


@pytest.fixture(scope="module")
def pool():
    with Pool(2) as made:
        yield made


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    """However quick a scorer, a look hands out what there is."""
    monkeypatch.setattr("llmrl.pool.round.WORTH", 1e-9)


@pytest.fixture
def warm(pool):
    """The pool with both of its processes up, so that a look can hand out at once."""
    score_at_once([group_of(0, "abcd")], [as_scorer(length)], Scoring(), pool)
    return pool


def as_scorer(function, name="judge"):
    return scorer(name, function, source_of(function, name))


def group_of(number, texts):
    return Group(Prompt(f"p{number}", text="?"), tuple(Rollout((n,), text) for n, text in enumerate(texts)))


def engine_of(policy, **options):
    from llmrl.rollout.engine import Context  # not above: the pool's processes import this file
    from llmrl.rollout.transformers import TransformersEngine

    return TransformersEngine(Context(policy, policy.tokenizer, (2, 24, 59, 101), 16, 32), **options)


def call_of(function, text="a", *, seconds=PATIENCE, question="?", number=1):
    made = as_scorer(function)
    rollouts = tuple(Rollout((1,), text) for _ in range(number))
    groups = ((Prompt("p", text=question), rollouts),)
    return Call(made.key, made.source, made.shape, DEFAULT, seconds, groups, made.together)


def until(event, between=lambda: None):
    """Wait for the event, looking after `between` meanwhile; whether it came."""
    deadline = time.monotonic() + PATIENCE
    while not event() and time.monotonic() < deadline:
        between()
        time.sleep(0.005)
    return event()


def length(prompt, rollout):
    return Score(float(len(rollout.text)))


def moody(prompt, rollout):
    if rollout.text == "exit":
        os._exit(3)
    if rollout.text == "raise":
        raise ValueError(rollout.text)
    return Score(float(len(rollout.text)), feedback=prompt.id)


def rank(group):
    if any(rollout.text == "raise" for rollout in group.rollouts):
        raise ValueError(group.prompt.id)
    return [Score(float(rollout.text == max(r.text for r in group.rollouts))) for rollout in group.rollouts]


async def later(prompt, rollout):
    return Score(-float(len(rollout.text)))


def of_all(completions):
    return [len(completions) + len(one) / 10 for one in completions]


def told_apart(groups):
    return [[Score(float(place)) for _ in group.rollouts] for place, group in enumerate(groups)]


@pytest.mark.parametrize("seed", range(3))
def test_scores_do_not_depend_on_the_order_in_which_groups_come(pool, seed):
    draw = random.Random(seed)
    words = ["a", "bb", "ccc", "raise", "exit"]
    groups = [group_of(n, [draw.choice(words) for _ in range(draw.randint(0, 5))]) for n in range(7)]
    scorers = [as_scorer(function, function.__name__) for function in (moody, rank, later, of_all, told_apart)]
    expected = score_at_once(groups, scorers, TOLERANT, pool)
    judging, places = Judging(scorers, TOLERANT, pool), list(range(7))
    draw.shuffle(places)
    while places:
        judging.add({g: groups[g] for g in (places.pop() for _ in range(min(len(places), draw.randint(1, 3))))})
        for _ in range(draw.randint(0, 3)):
            judging.look()
    assert judging.finish() == expected
    assert [list(scores) for group in expected for scores in group.scores][0] == [one.name for one in scorers]


def test_a_scorer_of_the_whole_step_is_called_once_with_all_of_it(warm, tmp_path):
    log = str(tmp_path / "calls")

    def reward(completions):
        with open(log, "a") as file:
            file.write(f"{len(completions)} ")
        return [1.0] * len(completions)

    judging = Judging([as_scorer(reward)], Scoring(), warm)
    for g in (1, 0):
        judging.add({g: group_of(g, "abc")})
        judging.look()
    judging.finish()
    assert Path(log).read_text() == "6 "


def test_quick_calls_are_kept_until_they_are_worth_a_message(warm, monkeypatch):
    monkeypatch.setattr("llmrl.pool.round.WORTH", 10.0)  # seconds; `warm` has shown how quick `length` is
    judging = Judging([as_scorer(length)], Scoring(), warm)
    judging.add({0: group_of(0, "abc")})
    judging.look()
    assert judging.round.left == 3 and not any(worker.todo for worker in warm.staff)
    assert [one["judge"].value for one in judging.finish()[0].scores] == [1.0] * 3


def test_retry_and_the_share_of_errors_hold_for_groups_that_came_early(warm, tmp_path):
    folder = str(tmp_path)

    def flaky(prompt, rollout):
        with open(f"{folder}/{rollout.text}", "a") as file:
            file.write("x")
            if rollout.text != "good" and (file.tell() == 1 or rollout.text == "bad"):
                raise OSError("busy")
        return Score(1.0)

    def early(texts, config):
        judging = Judging([as_scorer(flaky)], config, warm)
        judging.add({0: group_of(0, texts)})
        until(lambda: not judging.round.left, judging.look)
        return [one["judge"].value for one in judging.finish()[0].scores]

    assert early(["good", "second", "bad"], Scoring(on_error="retry")) == [1.0, 1.0, None]
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"good": "x", "second": "xx", "bad": "xx"}
    with pytest.raises(ScoringError, match="1 of 1 rollouts could not be scored"):
        early(["bad"], Scoring())


def test_scoring_begins_while_others_are_still_being_written(warm, make_policy, tmp_path):
    """The model waits in the middle of its answers until a scorer has begun: an engine or a pool that keeps finished
    groups back to the end lets it wait in vain.
    """
    begun = str(tmp_path / "begun")

    def slow(prompt, rollout):
        start = time.monotonic()
        open(begun, "a").close()
        time.sleep(0.01)
        return Score(1.0, evidence={"start": start, "end": time.monotonic()})

    policy, steps = make_policy(), []
    policy.model.get_decoder().register_forward_pre_hook(lambda *_: steps.append(time.monotonic()))
    engine, prompts = engine_of(policy), [Prompt(f"p{n}", ids=(5 + n, 20, 33)) for n in range(6)]
    judging = Judging([as_scorer(slow)], Scoring(), warm)

    def finished(ended):
        judging.add({g: Group(prompts[g], tuple(rollouts)) for g, rollouts in ended.items()})
        judging.look()
        if judging.groups and not os.path.exists(begun):
            until(lambda: os.path.exists(begun), judging.look)

    rollouts = engine.generate(prompts, Sampling(32), 2, list(range(6)), finished)
    lengths = [max(len(r.ids) for r in rs) for rs in rollouts]
    assert min(lengths) < max(lengths) and steps  # groups of very different lengths, else this test shows nothing
    last_token = steps[-1]
    finished({g: rs for g, rs in enumerate(rollouts) if g not in judging.groups})
    first = min(scores["judge"].evidence["start"] for group in judging.finish() for scores in group.scores)
    assert first < last_token


def test_an_engine_tells_of_each_prompt_once_and_hands_over_what_it_returns(make_policy):
    policy = make_policy()
    prompts = [Prompt(f"p{n}", ids=(5 + n, 20, 33)[: 1 + n % 3]) for n in range(6)]
    for rows in (256, 4):
        engine, calls = engine_of(policy, max_rows=rows), []
        rollouts = engine.generate(prompts, Sampling(32), 2, list(range(6)), calls.append)
        told = list(itertools.chain.from_iterable(ended.items() for ended in calls))
        assert len(told) == len(dict(told)) > 0 and any(not ended for ended in calls)
        assert all(rollouts[place] == handed for place, handed in told)
        assert rollouts == engine.generate(prompts, Sampling(32), 2, list(range(6)))


def test_an_answer_that_lies_there_is_not_late(warm):
    under_way = Round(warm)
    under_way.add([call_of(length, seconds=0.3)] * 4)
    under_way.look()
    time.sleep(1.0)  # the trainer is at something else
    assert under_way.finish() == [[Score(1.0)]] * 4


@pytest.mark.parametrize("question, answer", [(2_000_000, 1), (1, 60_000)])
def test_what_does_not_fit_into_a_socket_is_not_late_for_the_trainers_not_looking(warm, question, answer):
    def tell(group):
        return [Score(1.0, feedback="y" * len(group.rollouts[0].text)) for _ in group.rollouts]

    under_way = Round(warm)
    under_way.add([call_of(tell)] * 4)
    under_way.finish()  # both processes know it now: time to learn is not what is measured
    under_way.add([call_of(tell, text="x" * answer, question="x" * question, number=24, seconds=0.5)])
    under_way.look()
    time.sleep(1.5)  # the rest of it can come only afterwards
    (outcome,) = under_way.finish()
    assert [one.feedback for one in outcome] == ["y" * answer] * 24


def test_what_hangs_is_late_even_if_the_trainer_seldom_looks(warm):
    def hang(prompt, rollout):
        time.sleep(1000 if rollout.text == "hang" else 0)
        return Score(1.0)

    under_way = Round(warm)
    under_way.add([call_of(hang, text, seconds=0.5) for text in ("hang", "a", "b", "hang", "c")])
    under_way.look()
    time.sleep(0.8)
    late, good = "no answer within 0.5 s", [Score(1.0)]
    assert under_way.finish() == [late, good, good, late, good]


def test_a_look_waits_neither_for_an_import_nor_for_a_process_that_does_not_read(tmp_path, monkeypatch):
    hold = tmp_path / "hold"
    hold.touch()
    (tmp_path / "held_import.py").write_text(
        f"import os, time\nwhile os.path.exists({str(hold)!r}):\n    time.sleep(0.01)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with Pool(1) as own:
        own.start(["held_import"])  # ends only when `hold` is gone: a look that waits would never come back
        under_way = Round(own)
        under_way.add([call_of(length)])
        under_way.look()
        assert own.staff == []
        hold.unlink()
        assert until(lambda: not under_way.left, under_way.look)

        async def busy(prompt, rollout):  # blocks its event loop, so that further calls are not read
            while os.path.exists(rollout.text):
                time.sleep(0.01)
            return Score(2.0)

        hold.touch()
        under_way.add([call_of(busy, str(hold))])
        under_way.look()
        under_way.add([call_of(busy, str(tmp_path / "none"), question="x" * 2_000_000)])
        under_way.look()
        hold.unlink()
        assert under_way.finish()[-2:] == [[Score(2.0)]] * 2


def test_calls_of_an_asynchronous_scorer_join_those_that_are_awaited_already(warm, tmp_path):
    gate = str(tmp_path / "gate")
    running = {"now": 0, "most": 0}

    async def judge(prompt, rollout):
        running["now"] += 1
        running["most"] = max(running.values())
        open(f"{gate}.{prompt.id}", "a").close()
        while not os.path.exists(gate):
            await asyncio.sleep(0.01)
        return Score(float(running["most"]))

    judging = Judging([as_scorer(judge)], Scoring(), warm)
    for g in range(3):
        judging.add({g: group_of(g, "abcd")})
        assert until(lambda g=g: os.path.exists(f"{gate}.p{g}"), judging.look)
    Path(gate).touch()
    assert [one["judge"].value for group in judging.finish() for one in group.scores] == [12.0] * 12


def test_a_process_that_ends_its_asynchronous_calls_takes_those_of_another_scorer_for_what_they_are(warm):
    for _ in range(100):  # its event loop may still be there when the next message comes
        for function, value in ((later, -2.0), (length, 2.0)):
            (group,) = score_at_once([group_of(0, ["aa"])], [as_scorer(function)], Scoring(), warm)
            assert group.scores[0]["judge"].value == value


def test_a_round_that_was_given_up_leaves_nothing_to_the_next(warm):
    def sleeper(prompt, rollout):
        time.sleep(1000)

    judging = Judging([as_scorer(sleeper)], Scoring(), warm)
    judging.add({0: group_of(0, "abcdef")})
    judging.look()
    busy = [worker.pid for worker in warm.staff if worker.todo]
    assert busy
    (group,) = score_at_once([group_of(0, ["a", "bb"])], [as_scorer(length)], Scoring(on_error="fail"), warm)
    assert [one["judge"].value for one in group.scores] == [1.0, 2.0]
    assert not set(busy) & {worker.pid for worker in warm.staff}


def test_processes_that_are_lost_between_two_looks_cost_no_score():
    with Pool(1) as own:
        judging = Judging([as_scorer(length)], Scoring(on_error="fail"), own)
        for g in range(3):
            judging.add({g: group_of(g, "abcdef")})
            judging.look()
            assert until(lambda: own.staff, judging.look)
            own.zygote.kill()
            own.zygote.wait()
            if g == 1:
                break
        found = judging.finish()
    assert [one["judge"].value for group in found for one in group.scores] == [1.0] * 12
