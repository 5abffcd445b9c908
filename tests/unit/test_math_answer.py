"""What the default protocol takes for equal, what it refuses, and that nothing hostile gets through or gets stuck."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrl.types import Group, Prompt, Rollout
from reward_models.majority_vote import majority_vote
from reward_models.math_answer import math_answer
from reward_models.mathematics import kernel
from reward_models.mathematics.classes import answer_classes
from reward_models.mathematics.protocols import DEFAULT, PROTOCOLS
from reward_models.mathematics.refusals import refusal

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fixtures"))

import math_bombs  # noqa: E402

kernel.library()


def judge(text, reference, protocol=DEFAULT):
    return math_answer(Prompt("p", text="?", reference=reference), Rollout((), text), protocol=protocol)


def value(answer, reference):
    return judge(f"\\boxed{{{answer}}}", reference).value


EQUAL = [
    ("x^2+2x+1", "(x+1)^2"),
    ("\\frac{\\sqrt{3}}{3}", "\\frac{1}{\\sqrt{3}}"),
    ("0.333333", "\\frac{1}{3}"),
    ("2\\frac{1}{2}", "\\frac{5}{2}"),
    ("3,1,2", "1,2,3"),
    ("4 \\text{ or } 5", "5, 4"),
    ("x = 5", "5"),
    ("(3,\\frac{\\pi}{2})", "\\left( 3, \\frac{\\pi}{2} \\right)"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
    ("x<2 \\text{ or } x>3", "(-\\infty,2)\\cup(3,\\infty)"),
    ("(-\\infty,2)\\cup(3,\\infty)", "x > 3 or x < 2"),
    ("x > 2", "(2,\\infty)"),
    ("60^\\circ, 45^\\circ", "45^{\\circ}, 60°"),
    ("50\\%", "50"),
    ("50", "50\\%"),
    ("0.5", "50\\%"),
    ("10:30", "10:30 a.m."),
    ("10 \\text{ cm}", "10"),
    ("10 cm", "10 \\text{ centimeters}"),
    ("10 \\text{ cm}^2", "10 square centimeters"),
    ("5\\sqrt{2} \\text{ in}", "5\\sqrt{2} \\text{ inches}"),
    ("18 eggs per day", "18 eggs"),
    ("5^{2022}", "5^{2022}"),
    ("4^{1011}\\cdot 25", "2^{2022}\\cdot 5^2"),
    ("\\text{evelyn}", "\\text{Evelyn}"),
]

DIFFERENT = [
    ("4 \\text{ or } 5 \\text{ or } 6", "4"),
    ("4, 5", "4"),
    ("4 \\pm 1", "5"),
    ("10 m", "10 cm"),
    ("10 \\text{ cm}", "10 \\text{ cm}^2"),
    ("5\\sqrt{2}\\text{ m}", "5\\sqrt{2}\\text{ cm}"),
    ("5 apples", "5 pears"),
    ("10:30", "1/3"),
    ("10:30", "10:31"),
    ("10:30 am", "10:30 pm"),
    ("50\\%", "5"),
    ("\\sqrt{2}\\%", "\\sqrt{2}"),
    ("x<2 \\text{ or } x>4", "(-\\infty,2)\\cup(3,\\infty)"),
    ("(2,5]", "[2,5)"),
    ("3c", "3"),
    ("٣", "3"),
    ("𝟑", "3"),
    ("３", "3"),
    ("\\frac{0}{0}", "5"),
    ("\\infty-\\infty", "5"),
    ("x", "5"),
    ("\\emptyset", "5"),
    ("it is 5 because two and three make five as everybody knows", "5"),
    ("__import__('os')", "5"),
]


@pytest.mark.parametrize(("answer", "reference"), EQUAL)
def test_equal(answer, reference):
    assert value(answer, reference) == 1.0


@pytest.mark.parametrize(("answer", "reference"), DIFFERENT)
def test_different(answer, reference):
    assert value(answer, reference) == 0.0


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("\\boxed{5} hmm, \\boxed{4}", "4"),
        ("\\boxed{4} <!-- \\boxed{5} -->", "5"),  # one answer is read, the last: hiding one gains nothing
        ("\\boxed{4}\n% \\boxed{5}", "5"),
        ("\\fbox{4}", "4"),
        ("put your final answer within \\boxed{}. It is \\boxed{4}, within \\boxed{ }", "4"),
        ("The answer is 4 or 5 or 6.", "4 or 5 or 6"),
        ("\\boxed{4}" + " word" * 5_000, None),
        ("\\boxed{" + "4" * 5_000 + "}", None),
    ],
)
def test_one_answer_is_read(text, read):
    score = judge(text, "4")
    assert score.evidence["read"] == read and score.value == float(read == "4")


def test_evidence_is_short_and_names_the_protocol_and_feedback_hides_the_reference():
    score = judge("\\boxed{" + "x+" * 400 + "y}", "8675309")
    assert score.value == 0.0 and len(score.evidence["read"]) == 200 and score.evidence["protocol"] == DEFAULT
    assert score.evidence["by"].startswith("refused: more than 600 parts") and "8675309" not in score.feedback


@pytest.mark.parametrize("reference", [None, "", "  ", True, [4], "9^{9^{9^{9}}}"])
def test_a_broken_reference_is_an_error_and_not_a_zero(reference):
    with pytest.raises(ValueError, match="reference"):
        judge("\\boxed{4}", reference)


def test_a_restated_reference_is_right_even_where_it_could_not_be_compared():
    assert value("9^{9^{9^{9}}}", "9^{9^{9^{9}}}") == 1.0


@pytest.mark.parametrize("bomb", math_bombs.BOMBS)
def test_a_bomb_is_refused_before_it_is_parsed(bomb):
    assert len(set(math_bombs.BOMBS)) >= 40
    score = judge(f"\\boxed{{{bomb}}}", "7")
    if score.evidence["read"] is not None:  # longer ones and those whose braces do not close are no answers at all
        assert score.evidence["by"].startswith("refused")
    assert score.value == 0.0 and refusal(bomb)


def test_a_thousand_made_bombs_are_refused():
    found = math_bombs.made(1_000)
    assert len(set(found)) == 1_000 and [bomb for bomb in found if not refusal(bomb)] == []


@pytest.mark.parametrize("answer", math_bombs.ORDINARY)
def test_what_people_answer_is_not_refused(answer):
    assert refusal(answer) is None


@pytest.mark.parametrize("bomb", math_bombs.SLOW)
def test_what_is_not_refused_ends_by_the_deadline_and_is_wrong(bomb):
    start = time.thread_time()
    assert judge(f"\\boxed{{{bomb}}}", "x^2+1").value == 0.0
    assert time.thread_time() - start < 1.0


def test_a_slow_comparison_is_wrong_and_a_reference_that_is_slow_to_read_an_error(monkeypatch):
    def compare(answer, reference):
        while "slow" in (answer, reference):
            pass
        return True

    def expression(reference):
        while reference == "slow":
            pass

    monkeypatch.setattr(kernel, "SECONDS", 0.05)
    monkeypatch.setattr(kernel, "expression", expression)
    assert kernel.guarded(compare, "slow", "x") == (False, "refused: takes too long")
    assert kernel.guarded(compare, "y", "x") == (True, "algebra")
    with pytest.raises(kernel.BrokenReference, match="takes longer than 0.05 s to read"):
        kernel.guarded(compare, "y", "slow")


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" * 143_000,
        "\\boxed " * 143_000,
        "$" * 10**6,
        "#### " * 200_000,
        "1 " * 500_000,
        "Final Answer: The final answer is" * 30_000,
        "Answer:" + " " * 10**6,
        "{" * 10**6,
        "\\text{" * 170_000,
        "answer is \\frac{" * 60_000,
    ],
)
def test_a_megabyte_of_hostile_text_costs_less_than_a_second(protocol, text):
    start = time.thread_time()
    judge(text, "#### 7" if "gsm8k" in protocol else "7", protocol)
    assert time.thread_time() - start < 1.0


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec=None), max_size=40), st.sampled_from(sorted(PROTOCOLS)))
def test_no_text_raises(text, protocol):
    reference = "#### 7" if "gsm8k" in protocol else "7"
    for written in (text, f"\\boxed{{{text}}}", f"#### {text}", f"Answer: {text}"):
        assert judge(written + "\ud800\x00", reference, protocol).value in (0.0, 1.0)


FIRST = """
from reward_models.mathematics import kernel
kernel.SECONDS = 0.1  # the first use takes 0.27 s
print(kernel.same("x^2+2x+3", "(x+1)^2+2"))
"""


def test_the_first_comparison_of_a_process_is_not_late_for_being_the_first():
    run = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "(True, 'algebra')"


def test_classes_of_equal_answers():
    texts = [
        "\\boxed{\\frac{1}{2}}",
        "no",
        "\\boxed{0.5}",
        "\\boxed{x}",
        "\\boxed{1/2}",
        "\\boxed{9^{9^{9}}}",
        "\\boxed{x}",
    ]
    assert answer_classes(texts) == [0, None, 0, 1, 0, 2, 1]
    assert answer_classes(["#### 5", "#### 5.0", "5", "#### 5."], "gsm8k/strict") == [0, 1, None, 0]
    assert answer_classes(["\\boxed{9^{9^{9}}}", "\\boxed{2x}", "\\boxed{x+x}"]) == [0, 1, 1]


def test_the_majority_decides_and_ties_go_to_the_answer_given_first():
    def vote(reference, *answers):
        rollouts = tuple(Rollout((), f"\\boxed{{{one}}}" if one else "none") for one in answers)
        return majority_vote(Group(Prompt("p", text="?", reference=reference), rollouts))

    right = vote("0.5", "1", "1/2", "\\frac{1}{2}", "")
    assert [score.value for score in right] == [1.0] * 4
    assert [score.evidence["class"] for score in right] == [0, 1, 1, None]
    assert [score.evidence["correct"] for score in right] == [False, True, True, False]
    assert [score.value for score in vote("0.5", "1", "1/2")] == [0.0, 0.0]
    assert [score.value for score in vote("0.5", "1/2", "1")] == [1.0, 1.0]
    assert [score.value for score in vote("0.5", "", "")] == [0.0, 0.0]
