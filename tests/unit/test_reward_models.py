"""The toolkit's own scorers: what they read, what they accept, and what hostile text costs."""

import json
import time
from pathlib import Path

import pytest

from llmrl import catalog
from llmrl.types import Completion, Prompt, Rollout
from reward_models import CATALOG
from reward_models.answer_tag import answer_tag
from reward_models.equivalence import equivalent
from reward_models.extraction import final_answer
from reward_models.format_tags import format_tags
from reward_models.math_answer import math_answer
from reward_models.scripted_feedback import CORRECT, LONG, SHORT, TIDY, UNTIDY, WRONG, scripted_feedback
from reward_models.stored_feedback import stored_feedback

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def ask(reference, id="p"):
    return Prompt(id, text="?", reference=reference)


def say(text, size=0, stored=None):
    return Rollout(ids=(0,) * size, text=text, stored=stored)


def rows(name):
    if not (DATA / name).exists():
        pytest.skip(f"{name} is not beside the checkout, in ../shared/data")
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


@pytest.mark.parametrize("name", CATALOG)
def test_every_row_of_the_table_resolves_to_a_documented_scorer(name):
    assert catalog.get("scorers", name).__name__ == name and catalog.summary("scorers", name)[0]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"so \boxed{5}. Hmm, \boxed{4}", ("4", "boxed")),
        (r"\boxed{\frac{1}{2}} is \textbf{it}", (r"\frac{1}{2}", "boxed")),
        (r"\boxed{5} and then \boxed{4", ("5", "boxed")),
        (r"a } stray \boxed{\{1,2\}} {", (r"\{1,2\}", "boxed")),
        (r"\boxed{\boxed{5}}", ("5", "boxed")),
        (r"\boxed{} #### 7", ("7", "hashes")),
        ("#### 3\n#### 72 \nDone.", ("72", "hashes")),
        (r"#### 3 so \boxed{4}", ("4", "boxed")),
        ("<answer>3</answer> no, <answer>4</answer>", ("4", "answer_tag")),
        ("The answer is 4. The final answer is 3.5. I hope so.", ("3.5", "sentence")),
        ("ANSWER: 12\n(checked 2 times)", ("12", "sentence")),
        ("3 + 4 = 7", None),
        ("", None),
    ],
)
def test_final_answer_reads_the_last_one_under_the_strongest_mark(text, found):
    assert final_answer(text) == found


def test_final_answer_options():
    assert final_answer("3 + 4 = 1,007 and no more", last_number=True) == ("1,007", "last_number")
    assert final_answer("#### 7", boxed_only=True, last_number=True) is None


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("72", "72.00"),
        ("72.", "72"),
        ("007", "7"),
        ("+7", "7"),
        ("−5", "-5"),
        ("1,234,567", "1234567"),
        ("1{,}234", "1234"),
        ("1/2", "0.50"),
        (r"-\frac{1}{2}", "-.5"),
        (r"\dfrac{-1}{2}", "-1/2"),
        (r"\frac12", "2/4"),
        ("$18", "18 dollars"),
        (r"\$18", "18"),
        (r"5\text{ cm}", "5"),
        ("18 eggs per day", "18"),
        (r"50\%", "50"),
        (r"90^\circ", "90"),
        ("**72**", "72"),
        (r"\( 72 \)", "72"),
        (r"\text{Evelyn}", "Evelyn"),
        (r"11\sqrt2", r"11 \sqrt{2}"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\dfrac{ \pi }{2})"),
    ],
)
def test_equivalent_answers(answer, reference):
    assert equivalent(answer, reference) and equivalent(reference, answer)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("71", "72"),
        ("4 or 5 or 6", "4"),
        ("4 or so", "4"),
        ("10 m", "10 cm"),
        ("5x", "5"),
        ("2i", "2"),
        ("1,2", "12"),
        ("1,000,00", "100000"),
        ("10:30", "1/3"),
        ("1e3", "1000"),
        ("٣", "3"),
        ("1/0", "0"),
        ("", ""),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_answers_that_are_not_the_same(answer, reference):
    assert not equivalent(answer, reference) and not equivalent(reference, answer)


def test_math_answer_says_what_it_read_and_keeps_the_answer_to_itself():
    right = math_answer(ask("She sold 48+24 = 72 clips.\n#### 72"), say("The answer is 72 clips."))
    assert right.value == 1.0 and right.feedback == "The final answer 72 clips is correct."
    assert right.evidence == {
        "protocol": "llmrl/boxed@1",
        "read": "72 clips",
        "expected": "72",
        "how": "sentence",
        "by": "exact",
        "correct": True,
    }
    wrong = math_answer(ask(72), say(r"\boxed{71}"))
    assert wrong.value == 0.0 and wrong.feedback == "The final answer 71 is wrong." and not wrong.evidence["correct"]
    silent = math_answer(ask(72), say("72"))
    assert silent.value == 0.0 and silent.evidence["read"] is None and "72" not in silent.feedback


@pytest.mark.parametrize("reference", [None, True, " ", float("nan"), float("inf")])
def test_math_answer_without_a_reference_cannot_judge(reference):
    with pytest.raises(ValueError, match=f"reference is {reference!r}; expected a string or a number"):
        math_answer(ask(reference), say(r"\boxed{1}"))


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{" * 143_000,
        "{" * 10**6,
        "}" * 10**6,
        "#" * 10**6,
        "<answer>" * 125_000,
        "answer is " * 10**5,
        "answer" + " " * 10**6,
        "answer is" + "." * 10**6,
        "1," * 500_000,
        "9" * 10**6,
        " \n" * 500_000,
        "<think>" + "x" * 10**6,
        "x" * 10**6 + r"\boxed{" + r"\text {" * 140 + "}",
        "x" * 10**6 + r"\boxed{" + " " * 900 + "1}",
        "x" * 10**6 + r"\boxed{5 " + "ab " * 300 + "}",
        r"\boxed{9^{9^{9^{9}}}}" + " " * 10**6,
    ],
)
def test_a_megabyte_of_hostile_text_costs_less_than_50_ms(text):
    scorers = [
        lambda p, r: math_answer(p, r, protocol="llmrl/last-number@1"),
        answer_tag,
        format_tags,
        scripted_feedback,
    ]
    for scorer in scorers:
        spent = min(cost(scorer, ask("1,000"), say(text)) for _ in range(2))  # the machine may be busy
        assert spent < 0.05


def cost(scorer, prompt, rollout):
    start = time.thread_time()
    scorer(prompt, rollout)
    return time.thread_time() - start


@pytest.mark.real_data
@pytest.mark.parametrize(
    "form", ["#### {}", r"\boxed{{{}}}", "The answer is {}.", "#### {}.00", "ANSWER: {}\n(2 checks)"]
)
def test_restated_gsm8k_golds_are_all_right(form):
    golds = [row["answer"] for row in rows("gsm8k_test.jsonl")]
    texts = ["3 + 4 = 7, so\n" + form.format(gold.split("#### ")[1]) for gold in golds]
    assert sum(math_answer(ask(gold), say(text)).value for gold, text in zip(golds, texts, strict=True)) == 1319
    shifted = golds[1:] + golds[:1]
    numbers = [gold.split("#### ")[1].replace(",", "") for gold in golds]
    same = sum(a == b for a, b in zip(numbers, numbers[1:] + numbers[:1], strict=True))
    assert sum(math_answer(ask(gold), say(text)).value for gold, text in zip(shifted, texts, strict=True)) == same


@pytest.mark.real_data
@pytest.mark.parametrize(
    "form", [r"$\boxed{{{}}}$", r"\boxed{{ {} }}", "Answer: ${}$", "The final answer is ${}$. Yes."]
)
def test_restated_math500_golds_are_all_right(form):
    golds = [row["answer"] for row in rows("math500.jsonl")]
    written = [form.format(gold.replace(r"\frac", r"\dfrac")) for gold in golds]
    assert [g for g, text in zip(golds, written, strict=True) if not math_answer(ask(g), say(text)).value] == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>37-2=35</think><answer>35</answer>", 1.0),
        ("<answer>035</answer>", 1.0),
        ("<answer>35</answer> ", 0.0),
        ("<answer>35</answer>\n", 0.0),
        ("<answer>3</answer>5", 0.0),
        ("<answer> 35</answer>", 0.0),
        ("<answer>٣٥</answer>", 0.0),
        ("35", 0.0),
    ],
)
def test_answer_tag_wants_the_exact_ending(text, value):
    assert answer_tag(ask("35"), say(text)).value == value


def test_answer_tag_reads_negative_numbers_and_refuses_a_reference_that_is_no_integer():
    assert answer_tag(ask(-3), say("<answer>-3</answer>")).value == 1.0
    with pytest.raises(ValueError, match="invalid literal"):
        answer_tag(ask("pi"), say("<answer>3</answer>"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>a</think><answer>b</answer>", 1.0),
        (" <think>a</think>\n<answer>b</answer>\n", 1.0),
        ("<answer>b</answer>", 0.0),
        ("<think>a</think><answer>b</answer> bye", 0.0),
        ("<think>a</think> so <answer>b</answer>", 0.0),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0.0),
        ("<answer>b</answer><think>a</think>", 0.0),
        ("<think>a<answer>b</answer></think>", 0.0),
    ],
)
def test_format_tags_wants_one_think_block_then_one_answer_block(text, value):
    assert format_tags(ask(0), say(text)).value == value


def test_format_tags_takes_other_names():
    rollout = say("<reasoning>a</reasoning><result>b</result>")
    assert format_tags(ask(0), rollout, think="reasoning", answer="result").value == 1.0


def phrases(score):
    return score.feedback.rstrip(".").split(", ")


@pytest.mark.parametrize(
    ("text", "value", "right", "form"),
    [
        ("<think>1+6</think><answer>7</answer>", 1.0, CORRECT, TIDY),
        ("it is 7", 0.7, CORRECT, UNTIDY),
        ("<think>1+6</think><answer>8</answer>", 0.2, WRONG, TIDY),
        ("no idea", 0.0, WRONG, UNTIDY),
    ],
)
def test_scripted_feedback_speaks_of_correctness_and_form(text, value, right, form):
    score = scripted_feedback(ask(7), say(text))
    said = phrases(score)
    assert score.value == value and score.evidence["correct"] == (right is CORRECT)
    assert score.evidence["score"] == value * 10
    assert len(said) == 2 and said[0] in right and said[1] in form
    assert "7" not in score.feedback


def test_scripted_feedback_is_drawn_by_prompt_and_text_alone():
    texts = [f"it is 7{' ' * i}" for i in range(40)]
    first = [scripted_feedback(ask(7), say(text)).feedback for text in texts]
    assert first == [scripted_feedback(ask(7), say(text)).feedback for text in texts]
    assert {one.split(", ")[0] for one in first} == set(CORRECT)
    assert first != [scripted_feedback(ask(7, id="q"), say(text)).feedback for text in texts]


def test_scripted_feedback_speaks_of_length_only_when_asked():
    assert phrases(scripted_feedback(ask(7), say("7", size=31), include_length=True))[2] in SHORT
    assert "length" in phrases(scripted_feedback(ask(7), say("7", size=32), include_length=True))[2]
    assert phrases(scripted_feedback(ask(7), say("7", size=129), include_length=True))[2] in LONG
    assert scripted_feedback(ask(7), say("7", size=1), tags=False).value == 1.0


def test_stored_feedback_reads_what_was_replayed():
    stored = Completion("7", feedback="Clear and correct.", score=9)
    score = stored_feedback(ask(None), say("7", stored=stored))
    assert (score.value, score.feedback, score.evidence) == (0.9, "Clear and correct.", {"score": 9})
    bare = say("7", stored=Completion("7", feedback="Clear."))
    assert stored_feedback(ask(None), bare).value is None
    assert stored_feedback(ask(None), bare, unscored=0.0).value == 0.0


def test_stored_feedback_refuses_other_rollouts_and_scales():
    with pytest.raises(ValueError, match="no stored feedback"):
        stored_feedback(ask(None), say("7"))
    high = say("7", stored=Completion("7", feedback="Good.", score=80))
    with pytest.raises(ValueError, match=r"80 is not in \[0, 10\]"):
        stored_feedback(ask(None), high)
    assert stored_feedback(ask(None), high, full_score=100.0).value == 0.8
