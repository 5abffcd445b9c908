"""Scorers of every shape, and what becomes of those that fail."""

import asyncio
import math
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from llmrl.config import Scoring
from llmrl.errors import CatalogError, RecipeError, ScoringError
from llmrl.limits import DEFAULT, limits
from llmrl.pool import Pool
from llmrl.pool.round import Call, Round, Source
from llmrl.scoring import distinct, from_function, make_scorer, make_scorers, scorer, source_of, usable
from llmrl.scoring import score as score_in
from llmrl.types import Completion, Group, Prompt, Rollout, Score

TOLERANT = Scoring(max_error_share=1.0)


def text_group(id, texts, **columns):
    prompt = Prompt(id, text=f"question {id}", reference=columns.get("answer"), columns=columns)
    return Group(prompt, tuple(Rollout(ids=(i, 9), text=text) for i, text in enumerate(texts)))


def chat_group(id, texts, **columns):
    turns = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": f"question {id}"})
    return Group(Prompt(id, messages=turns, columns=columns), tuple(Rollout(ids=(1,), text=text) for text in texts))


POOL = Pool(workers=2)


@pytest.fixture(scope="module", autouse=True)
def pool():
    with POOL:
        yield POOL


def score(groups, scorers, config):
    return score_in(groups, scorers, config, POOL)


def as_scorer(function, name="judge"):
    return scorer(name, function, source_of(function, name))


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
    def reward(prompts, completions, answer, **kwargs):
        assert prompts == ["question p", "question p", "question q"]
        assert answer == ["8", "8", "5"] and kwargs["level"] == [1, 1, 2]
        assert kwargs["completion_ids"] == [[0, 9], [1, 9], [0, 9]] and kwargs["reference"] == ["8", "8", "5"]
        return [float(a == c) for a, c in zip(answer, completions, strict=True)]

    groups = [text_group("p", ["7", "8"], answer="8", level=1), text_group("q", ["5"], answer="5", level=2)]
    assert judged(groups, reward) == [0.0, 1.0, 1.0]


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


def test_calls_of_an_asynchronous_scorer_run_together():
    running = {"now": 0, "most": 0}

    async def judge(prompt, rollout):
        running["now"] += 1
        running["most"] = max(running.values())
        await asyncio.sleep(0.05)
        running["now"] -= 1
        return Score(float(running["most"]))

    assert judged([text_group("p", ["a"] * 20)], judge) == [20.0] * 20


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


def test_a_wrong_count_says_both_counts():
    answer = ["ValueError: returned 1 scores for 2 rollouts"] * 2
    assert judged([text_group("p", ["a", "b"])], lambda group: [Score(1.0)]) == answer
    answer = ["ValueError: returned 3 scores for 1 rollouts"] * 2
    assert judged([text_group("p", ["a", "b"])], lambda completions: [1.0] * 3) == answer


def test_one_bad_entry_of_a_trl_function_leaves_the_others():
    assert judged([text_group("p", ["a", "b"])], lambda completions: [math.nan, True]) == [
        "value is nan, expected a finite number or None",
        1.0,
    ]


def test_retry_asks_once_more_and_only_for_what_failed(tmp_path):
    log = str(tmp_path / "calls")

    def flaky(prompt, rollout):
        with open(log, "a+") as file:
            file.seek(0)
            before = file.read().split()
            file.write(f"{rollout.text} ")
        if rollout.text == "bad" or (rollout.text == "second" and "second" not in before):
            raise OSError(f"busy, {before.count(rollout.text)} before")
        return Score(1.0)

    config = Scoring(on_error="retry", max_error_share=1.0)
    answers = judged([text_group("p", ["good", "second", "bad"])], flaky, config=config)
    assert answers == [1.0, 1.0, "OSError: busy, 1 before"]
    assert sorted(Path(log).read_text().split()) == ["bad", "bad", "good", "second", "second"]


def test_retry_keeps_what_was_judged_the_first_time(tmp_path):
    log = str(tmp_path / "calls")

    async def flaky(completions):
        first = not os.path.exists(log)
        open(log, "w").close()
        return [1.0, math.nan] if first else [5.0, 2.0]

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
            {"name": "math_answer", "protocl": "aime"},
            "scorers.math_answer.protocl is not an option of math_answer. Did you mean protocol? "
            "Options: protocol, weight.",
        ),
        (
            {"name": "format_tags", "think": True},
            "scorers.format_tags.think: found true, expected a string.",
        ),
        ({"name": "math_answer", "weight": "2"}, "scorers.math_answer.weight is '2'; expected a number."),
        ({"weight": 1.0}, "has no name. Expected a scorer's name"),
        (f"{__name__}:needs_option", "path is missing: "),
        (f"{__name__}:odd", "takes (text, gold). Expected (prompt, rollout), (group), (groups), TRL's"),
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
        make_scorers(["math_answer", {"name": "math_answer", "protocol": "aime"}])


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    if data_source != "sums":
        raise NotImplementedError(f"no scorer for {data_source}")
    return {"score": float(solution_str == ground_truth), "level": extra_info["level"]}


def test_a_function_out_of_verl_runs_unchanged():
    def group(source):
        columns = {"answer": "7", "data_source": source, "extra_info": {"level": 3}}
        return text_group("p", ["7", "8"], **columns)

    (scored,) = score([group("sums")], [as_scorer(compute_score)], Scoring())
    assert [one["judge"].value for one in scored.scores] == [1.0, 0.0]
    assert scored.scores[0]["judge"].evidence == {"level": 3}
    assert judged([group("other")], compute_score) == ["NotImplementedError: no scorer for other"] * 2
    assert (
        judged([group("sums")], lambda solution_str, ground_truth: {"acc": 1})
        == ["ValueError: returned a dictionary with acc; expected a 'score'"] * 2
    )


def test_a_scorer_of_the_whole_step_sees_every_group():
    def rank(groups):
        return [[Score(float(len(groups)), steps=((1, 0.5),)) for _ in group.rollouts] for group in groups]

    scored = score([text_group("p", ["a", "b"]), text_group("q", ["c"])], [as_scorer(rank)], Scoring())
    assert [[s["judge"].value for s in g.scores] for g in scored] == [[2.0, 2.0], [2.0]]
    assert scored[1].scores[0]["judge"].steps == ((1, 0.5),)


def test_a_failing_batch_call_is_split_until_the_fault_stands_alone():
    def reward(completions):
        if "bad" in completions:
            raise ValueError("bad")
        return [float(len(completion)) for completion in completions]

    texts = ["a", "bb", "bad", "dddd", "a", "bb", "bad"]
    bad = "ValueError: bad"
    assert judged([text_group("p", texts)], reward) == [1.0, 2.0, bad, 4.0, 1.0, 2.0, bad]


def test_faults_cost_only_their_own_rollout_and_their_processes_are_replaced():
    def judge(prompt, rollout):
        if rollout.text == "hang":
            time.sleep(60)
        if rollout.text == "exit":
            os._exit(7)
        if rollout.text == "leave":
            raise SystemExit("bye")
        if rollout.text == "crash":
            os.abort()
        if rollout.text == "memory":
            bytearray(16 << 30)
        return Score(float(os.getpid()))

    replaced = POOL.replaced
    texts = ["good", "hang", "exit", "good", "leave", "crash", "memory", "good"]
    config = Scoring(timeout=0.5, max_error_share=1.0)
    found = judged([text_group("p", texts)], judge, config=config)
    assert [one for one, text in zip(found, texts, strict=True) if text != "good"] == [
        "no answer within 0.5 s",
        "its process ended with exit status 7",
        "SystemExit: bye",
        "its process was ended by SIGABRT",
        "MemoryError",
    ]
    pids = [one for one, text in zip(found, texts, strict=True) if text == "good"]
    assert all(isinstance(pid, float) and pid != os.getpid() for pid in pids)
    assert POOL.replaced - replaced == 3


def test_a_process_that_ends_an_asynchronous_call_takes_no_other_call_with_it():
    async def judge(prompt, rollout):
        if rollout.text == "exit":
            os._exit(7)
        await asyncio.sleep(0.01)
        return Score(1.0)

    died = "its process ended with exit status 7"
    assert judged([text_group("p", ["a", "exit", "b", "exit"])], judge) == [1.0, died, 1.0, died]


def test_what_is_not_plain_is_refused_on_both_ways():
    def judge(prompt, rollout):
        return Score(1.0, evidence={"judge": object()})

    def talker(prompt, rollout):
        return Score(1.0, feedback="x" * 100_000)

    assert judged([text_group("p", ["a"])], judge)[0].startswith("its Score is not plain data: TypeError")
    assert "100" in judged([text_group("p", ["a"])], talker)[0]
    group = text_group("p", ["a"], picture=object())
    assert judged([group], length) == [
        "TypeError: column picture holds object; scorers get plain data: text, numbers, lists"
    ]


def test_prompt_and_rollout_arrive_as_they_were():
    def judge(prompt, rollout):
        assert prompt.columns == {
            "numbers": (1, 2.5, None),
            "by": {3: "x"},
            "odd": "\ud800\0",
        } and prompt.reference == [True]
        assert prompt.messages[0] == {"role": "user", "content": "é\udfff"} and prompt.feedback == "good"
        assert (
            rollout.ids == (1, 2) and rollout.truncated and rollout.version == 3 and rollout.loss_mask == (True, False)
        )
        assert rollout.stored.feedback == "fine" and rollout.stored.steps == ((1, 0.5),)
        return Score(1.0, feedback=rollout.text)

    columns = {"numbers": (1, 2.5, None), "by": {3: "x"}, "odd": "\ud800\0"}
    turns = ({"role": "user", "content": "é\udfff"},)
    prompt = Prompt("p", messages=turns, ids=(5,), reference=[True], columns=columns, feedback="good")
    stored = Completion("t", feedback="fine", score=1.0, steps=((1, 0.5),))
    rollout = Rollout((1, 2), "\ud83d text", (-0.1, -0.2), True, 3, (True, False), stored)
    (group,) = score([Group(prompt, (rollout,))], [as_scorer(judge)], TOLERANT)
    assert group.scores[0]["judge"] == Score(1.0, feedback="\ud83d text")


def test_python_functions_that_share_a_name_or_cannot_be_sent_are_refused():
    with pytest.raises(RecipeError, match="length is named 2 times"):
        distinct([from_function(length), from_function(length)])
    numbers = (number for number in range(3))  # no process can be sent a generator
    with pytest.raises(RecipeError, match="cannot be sent to the processes"):
        from_function(lambda completions: [float(next(numbers)) for _ in completions])
    with pytest.raises(RecipeError, match="expected a function"):
        make_scorer("math:pi")


def test_a_process_that_dies_between_two_rounds_costs_no_rollout():
    with Pool(workers=1) as own:
        for kill in (lambda: own.staff[0].pid, lambda: own.zygote.pid):
            score_in([text_group("p", ["a"])], [as_scorer(length)], Scoring(), own)
            os.kill(kill(), signal.SIGKILL)
            time.sleep(0.2)
            scored = score_in([text_group("p", ["a", "b"])], [as_scorer(length)], Scoring(on_error="fail"), own)
            assert [one["judge"].value for one in scored[0].scores] == [1.0, 1.0]
        own.zygote.kill()
        own.zygote.wait()
        own.start(["json.tool"])  # a module that the dead one has not imported
        assert score_in([text_group("p", ["a"])], [as_scorer(length)], Scoring(), own)


def test_a_late_call_that_sits_in_a_thread_delays_no_later_one():
    async def judge(prompt, rollout):
        if rollout.text == "hang":
            await asyncio.to_thread(time.sleep, 20)
        return Score(1.0)

    config = Scoring(timeout=0.5, max_error_share=1.0)
    with Pool(workers=1) as own:
        for text, expected in (("hang", "no answer within 0.5 s"), ("a", 1.0)):
            (group,) = score_in([text_group("p", [text])], [as_scorer(judge)], config, own)
            assert (group.scores[0]["judge"].error or group.scores[0]["judge"].value) == expected


def one_call(source, seconds=1.0, limits=DEFAULT):
    rollout = Rollout(ids=(1,), text="a")
    return Call(source, Source(source, b"", {}), "rollout", limits, seconds, ((Prompt("p", text="q"), (rollout,)),))


def outcomes(calls, pool):
    under_way = Round(pool)
    under_way.add(calls)
    return under_way.finish()


def test_a_module_that_never_ends_importing_stops_nothing(tmp_path, monkeypatch):
    (tmp_path / "endless_import.py").write_text("import time\nwhile True:\n    time.sleep(1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(Pool, "learning", 1.0)
    start = time.monotonic()
    with Pool(workers=1) as own:
        own.start(["endless_import"])
        late = "no answer within 1 s"
        assert outcomes([one_call("endless_import:judge")] * 8, own) == [late] * 8
    assert time.monotonic() - start < 8  # each was not waited for by itself


def test_the_processor_time_of_a_call_is_not_held_against_a_later_import(tmp_path, monkeypatch):
    spin = "import time\nwhile time.process_time() < 3.6:\n    pass\n"
    (tmp_path / "slow_import.py").write_text(
        spin + "from llmrl.types import Score\ndef judge(prompt, rollout):\n    return Score(1.0)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with Pool(workers=1) as own:
        score_in([text_group("p", ["a"])], [as_scorer(length)], Scoring(timeout=0.1), own)
        assert outcomes([one_call("slow_import:judge")], own) == [[Score(1.0)]]


def test_what_other_scorers_hold_in_memory_is_not_held_against_one(tmp_path, monkeypatch):
    (tmp_path / "large_table.py").write_text("HELD = bytearray(600 << 20)\n")
    monkeypatch.syspath_prepend(tmp_path)

    @limits(memory_gb=0.25)
    def judge(prompt, rollout):
        return Score(float(len(bytearray(int(rollout.text) << 20)) >> 20))

    with Pool(workers=1) as own:
        own.start(["large_table"])
        (group,) = score_in([text_group("p", ["100", "300"])], [as_scorer(judge)], TOLERANT, own)
        assert [one["judge"].error or one["judge"].value for one in group.scores] == [100.0, "MemoryError"]


def test_the_pool_ends_every_process_it_has_started():
    def judge(prompt, rollout):
        if os.fork() == 0:  # a process that a scorer leaves behind
            os.setsid()
            time.sleep(300)
        return Score(float(os.getpid()))

    with Pool(workers=2) as own:
        (group,) = score_in([text_group("p", ["a", "b", "c", "d"])], [as_scorer(judge)], Scoring(), own)
        zygote = own.zygote.pid
        below = descendants(zygote)
        assert len(below) >= 5 and all(one["judge"].value in below for one in group.scores)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in [zygote, *below])


def descendants(pid):
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *descendants(int(child))]
    return found


@limits(confined=True, memory_gb=1.0)
def curious(prompt, rollout):
    """What a confined scorer gets when it reaches for something."""
    reach = {
        "write": lambda: open(rollout.text.partition(" ")[2], "w"),
        "socket": lambda: socket.create_connection(("127.0.0.1", 9)),
        "datagram": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "fork": os.fork,
        "program": lambda: os.execv("/bin/true", ["true"]),
        "signal": lambda: os.kill(os.getppid(), 0),
        "memory": lambda: bytearray(2 << 30),
        "read": lambda: Score(float(open(__file__).read(3) == '"""')),
    }
    return reach[rollout.text.partition(" ")[0]]()


def test_a_confined_scorer_computes_and_reads_and_nothing_else(tmp_path):
    texts = [f"write {tmp_path}/there", "socket", "datagram", "fork", "program", "signal", "memory", "read"]
    found = judged([text_group("p", texts)], curious)
    assert found[-1] == 1.0 and found[-2] == "MemoryError"
    assert all(str(one).startswith("PermissionError") for one in found[:-2])
    assert not list(tmp_path.iterdir())
