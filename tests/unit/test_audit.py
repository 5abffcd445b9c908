"""The audit: every scorer of ours stands up to it, and scorers that can be fooled are told by the right check."""

from dataclasses import replace

import pytest

from llmrl import catalog, cli, oracles
from llmrl.attacks import ATTACKS, Case, constant, containment
from llmrl.audit import Example, audit
from llmrl.config import Data, Scoring
from llmrl.errors import DataError, ScoringError
from llmrl.pool import Pool
from llmrl.scoring import from_function, make_scorer, score
from llmrl.types import Group, Prompt, Score

NUM = 3  # prompts of each example
SLOW = {"humaneval", "mbpp", "code_stdio"}


@pytest.fixture(scope="module")
def pool():
    with Pool(2) as made:
        yield made


def judge_of(scorer, pool):
    return lambda groups: score(groups, [scorer], Scoring(max_error_share=1.0), pool)


def test_every_scorer_has_an_example_or_a_reason_for_none():
    assert set(oracles.stored_examples()) == set(catalog.table("scorers"))


RUNNABLE = [name for name, path in oracles.stored_examples().items() if ":" in path]


@pytest.mark.parametrize("name", [name for name in RUNNABLE if name not in SLOW])
def test_our_own_scorers_are_not_fooled(name, pool):
    try:
        example = oracles.stored_example(name)
    except DataError as error:
        pytest.skip(str(error))
    scorer = make_scorer({"name": name} | dict(example.options))
    found = audit(name, replace(example, cases=example.cases[:NUM]), judge_of(scorer, pool))
    assert not found.failed, str(found)


@pytest.mark.sandbox
@pytest.mark.parametrize("name", sorted(SLOW & set(catalog.table("scorers"))))
def test_our_own_code_scorers_are_not_fooled(name, pool):
    example = oracles.stored_example(name)
    scorer = make_scorer({"name": name} | dict(example.options))
    found = audit(name, replace(example, cases=example.cases[:2]), judge_of(scorer, pool))
    assert not found.failed, str(found)


# scorers that can be fooled, each by something else


def contains(prompt, rollout):
    return Score(float(expected(prompt) in rollout.text))


def in_the_answer(prompt, rollout):
    return Score(float(expected(prompt) in rollout.text.partition("<answer>")[2]))


def generous(prompt, rollout):
    return Score(float("<answer>" in rollout.text))


def fails_on_odd_text(prompt, rollout):
    return Score(float(int(rollout.text.split("<answer>")[1].split("</answer>")[0]) == int(prompt.reference)))


def believes(prompt, rollout):
    said = "PASSED" in rollout.text or rollout.text.endswith(f"<answer>{expected(prompt)}</answer>")
    return Score(float(said))


def moody(prompt, rollout, *, calls=[]):  # noqa: B006 - the memory is the fault
    calls.append(1)
    return Score(float(rollout.text.endswith(f"<answer>{expected(prompt)}</answer>")), feedback=str(len(calls)))


def forgiving(prompt, rollout):
    return Score(float(rollout.text.endswith(f"<answer>{prompt.reference}</answer>")))


def strict(prompt, rollout):
    return Score(float(rollout.text == f"Answer {expected(prompt)}"))


def expected(prompt):
    if prompt.reference is None:
        raise ValueError("no reference")
    return str(prompt.reference)


def example(num=8):
    prompts = [Prompt(id=str(n), text=f"{n} + 3 = ", reference=str(n + 3)) for n in range(20, 20 + num)]
    return Example([Case(p, p.reference, str(int(p.reference) + 50), "<answer>%s</answer>") for p in prompts])


@pytest.mark.parametrize(
    "function, checks",
    [
        (contains, {"containment", "hidden", "both_answers"}),
        (in_the_answer, {"containment", "hidden", "both_answers"}),
        (generous, set(ATTACKS) - {"hostile", "long"} | {"both_answers", "broken_rows"}),
        (fails_on_odd_text, {"exceptions"}),
        (believes, {"injection"}),
        (moody, {"determinism"}),
        (forgiving, {"broken_rows"}),
        (strict, {"oracle"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_scorer_that_can_be_fooled_is_told_by_what_fools_it(function, checks, pool):
    found = audit(function.__name__, example(), judge_of(from_function(function), pool))
    assert checks <= {check.name for check in found.failed}, str(found)
    if function is not generous:
        assert {check.name for check in found.failed} - checks <= {"hidden", "containment"}, str(found)
    assert "FAIL" in str(found) and f"{len(found.failed)} checks failed" in str(found)


def by_hand(value_of):
    """A judge that gives each response a value, or with text an error."""

    def judge(groups):
        values = [value_of(group.prompt, group.rollouts[0].text) for group in groups]
        scores = [Score(None, error=v) if isinstance(v, str) else Score(v) for v in values]
        return [Group(g.prompt, g.rollouts, ({"s": one},)) for g, one in zip(groups, scores, strict=True)]

    return judge


def check(found, name):
    return next(one for one in found.checks if one.name == name)


def test_shares_are_those_of_the_responses():
    # of 8 right answers 23 .. 30 six are even-or-small: only 29 and 30 get half marks
    found = audit(
        "s", example(), by_hand(lambda p, text: 0.5 if text.endswith(("29</answer>", "30</answer>")) else 1.0)
    )
    assert check(found, "oracle").found == "75.0%" and check(found, "oracle").passed is False
    late = audit("s", example(), by_hand(lambda p, text: "no answer within 3 s" if text == "" else 0.0))
    # one empty text for each of 8 prompts, judged twice
    assert check(late, "time-outs").found.startswith("16 of ") and check(late, "time-outs").passed is False
    assert check(late, "exceptions").passed is True


def test_marks_are_counted_from_where_the_example_says():
    poor = replace(example(), full=0.0, none=-0.5)
    found = audit("s", poor, by_hand(lambda p, text: 0.0 if text.endswith(f"<answer>{p.reference}</answer>") else -0.5))
    assert check(found, "wrong").passed and check(found, "oracle").passed
    better = audit("s", poor, by_hand(lambda p, text: -0.4))
    assert check(better, "wrong").passed is False


def test_what_is_skipped_has_its_reason_and_no_verdict_but_is_judged():
    asked = []
    skipping = replace(
        example(), skip={"hostile": "because", "oracle": "also", "both_answers": "too", "broken_rows": "so"}
    )
    found = audit("s", skipping, by_hand(lambda p, text: asked.append(text) or 1.0))
    for name in skipping.skip:
        assert check(found, name).passed is None and check(found, name).found == skipping.skip[name]
    assert any(len(text) >= 1_000_000 for text in asked)


def test_a_constant_answer_is_tried_where_it_is_wrong_and_lists_hold_the_right_one():
    cases = [Case(Prompt(id=str(n), text="?", reference=a), a, "9") for n, a in enumerate(["1", "1", "2"])]
    assert [constant(case, cases) for case in cases] == [[], [], ["1"]]
    assert containment(cases[2], cases)[0] == "9, 1, 1, 2, 1, 1, 9"


def test_rows_of_the_user_are_answered_in_the_form_that_gets_marks(pool, tmp_path):
    data = Data(source={"name": "arithmetic_chain", "size": 12})
    made = oracles.example_of("answer_tag", data, judge_of(make_scorer("answer_tag"), pool))
    assert {case.form for case in made.cases} == {"<answer>%s</answer>"} and len(made.cases) == 12
    assert all(int(case.wrong) == int(case.answer) + 1 for case in made.cases)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "2+2=", "answer": "work\\n#### 4"}\n{"prompt": "3+3=", "answer": "so\\n#### 6"}\n')
    made = oracles.example_of("math_answer", Data(source=str(path)), judge_of(make_scorer("math_answer"), pool))
    assert [case.answer for case in made.cases] == ["4", "6"]
    with pytest.raises(ScoringError, match="--oracle"):
        oracles.example_of("strict", data, judge_of(from_function(strict), pool))
    asked = oracles.example_of(
        "strict", data, judge_of(from_function(strict), pool), oracle=lambda prompt: f"Answer {prompt.reference}"
    )
    assert asked.cases[0].form == "%s" and asked.cases[0].answer.startswith("Answer ")


def test_the_command_prints_the_table_and_fails_with_the_scorer(capsys, tmp_path, monkeypatch):
    assert cli.main(["score", "audit", "answer_tag"]) == 0
    said = capsys.readouterr().out
    assert "answer_tag, audited on 40 prompts: every check passed" in said and "answers/s" in said
    (tmp_path / "mine.py").write_text("def lax(completions, **columns):\n    return [1.0 for one in completions]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert cli.main(["score", "audit", "mine:lax", "--data", "addition", "--limit", "5"]) == 2
    told = capsys.readouterr()
    assert "FAIL" in told.out and "ScoringError: lax failed wrong, empty" in told.err
    assert cli.main(["score", "audit", "mine:lax"]) == 2
    assert "--data" in capsys.readouterr().err
    (tmp_path / "torn.py").write_text("def f(:\n")
    for words, said in [
        (["audit", "mathanswer"], "Did you mean math_answer?"),
        (["audit", "mine:lex"], "Did you mean lax?"),
        (["audit", "torn:f"], "cannot import torn: SyntaxError"),
        (["audit", "math_answer", "protocol=minervaa"], "Did you mean minerva?"),
        (["audit", "math_answer", "--bench", "gsm8k"], "takes no --bench"),
        (["rows.jsonl", "--scorer", "math_answer", "--limit", "3"], "data.limit=N"),
    ]:
        assert cli.main(["score", *words]) == 2
        assert said in capsys.readouterr().err
    assert cli.main(["score", "audit", "math_answer", "--data", "addition", "data.limt=3"]) == 2
    assert "data.limt" in capsys.readouterr().err
