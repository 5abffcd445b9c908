"""The named protocols give the verdicts of the harnesses they are named after, on a fixed grid of made-up completions."""

import json
import sys
from pathlib import Path

import pytest

from llmrl.types import Prompt, Rollout
from reward_models.math_answer import math_answer
from reward_models.mathematics.protocols import DEFAULT, PROTOCOLS, protocol_of

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
sys.path.insert(0, str(FIXTURES))

import protocol_grid as grid  # noqa: E402

STORED = json.loads((FIXTURES / "protocol_verdicts.json").read_text())
DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"

# (protocol, gold, what is read, theirs): reason
UNREAD_REST = "sympy's LaTeX parser stops at what it does not know, so the harness compares beginnings"
BARE_PERCENT = "math-verify drops a percent sign after a bare fraction; ours keeps it"
DEVIATIONS = {
    ("minerva", ".5", "$.50$", False): "sympy's LaTeX parser cannot read a decimal that begins with its point",
    ("minerva", "1,-2", "$1,-20$", True): UNREAD_REST,
    ("minerva", "1,-2", "$1,-2\\%$", True): UNREAD_REST,
    ("minerva", "1,-2", "$1,$", True): UNREAD_REST,
    ("minerva", "90^\\circ", "$90^\\$", True): UNREAD_REST,
    ("minerva", "4210_{5}", "$4210_{5}0$", True): UNREAD_REST,
    ("minerva", "4210_{5}", "$4210_{5}\\%$", True): UNREAD_REST,
    ("minerva", "x \\in [-2,7]", "$x \\in [-2,7]0$", True): UNREAD_REST,
    ("minerva", "x \\in [-2,7]", "$x \\in [-2,7]\\%$", True): UNREAD_REST,
    ("minerva", "x \\in [-2,7]", "$x \\in $", True): UNREAD_REST,
    ("math_verify", "\\frac{14}{3}", "\\frac{14}{3}\\%", True): BARE_PERCENT,
    ("math_verify", "-\\frac{3}{4}", "-\\frac{3}{4}\\%", True): BARE_PERCENT,
}


def judge(text, reference, protocol=DEFAULT):
    return math_answer(Prompt("p", text="?", reference=reference), Rollout((), text), protocol=protocol)


@pytest.mark.parametrize("protocol", STORED["verdicts"])
def test_a_harness_and_its_protocol_agree_on_every_completion_or_the_reason_is_listed(protocol):
    cases = grid.cases()
    assert (len(cases), grid.digest(cases)) == (STORED["count"], STORED["sha256"]) and len(cases) >= 2_000
    real = grid.unpacked(STORED["verdicts"][protocol], len(cases))
    assert 20 < sum(real) < len(cases) - 20  # neither all right nor all wrong
    differ = set()
    for case, theirs in zip(cases, real, strict=True):
        ours = judge(case.text, grid.reference(protocol, case.gold), protocol)
        if (
            bool(ours.value) != theirs
        ):  # once more: the limit counts what else this process does, such as collecting garbage
            ours = judge(case.text, grid.reference(protocol, case.gold), protocol)
        if bool(ours.value) != theirs:
            differ.add((protocol, case.gold, ours.evidence["read"], theirs))
    assert differ == {one for one in DEVIATIONS if one[0] == protocol}


def test_every_protocol_of_another_harness_has_been_asked_for():
    assert set(STORED["verdicts"]) == {name for name, one in PROTOCOLS.items() if one.source != "llmrl"}


def test_an_unknown_protocol_names_the_nearest():
    with pytest.raises(ValueError, match=r"no protocol named 'gsm8k/strct'. Did you mean gsm8k/strict\? Known: llmrl/"):
        protocol_of("gsm8k/strct")


def test_the_same_text_under_every_protocol():
    # hand-worked: what each reads in 'so 12\n#### 1,234.\nAnswer: 7 in $\boxed{1234}$'
    text, reference = "so 12\n#### 1,234.\nAnswer: 7 in $\\boxed{1234}$", "#### 1,234"
    read = {name: judge(text, reference, name).evidence["read"] for name in PROTOCOLS}
    assert read == {
        "llmrl/boxed@1": "1234",
        "llmrl/boxed-only@1": "1234",
        "llmrl/last-number@1": "1234",
        "aime": "1234",
        "gsm8k/strict": "1,234.",
        "gsm8k/flexible": "1234",
        "minerva": None,
        "hendrycks": "1234",
        "hendrycks/dollars": "\\boxed{1234}",
        "verl/gsm8k": "1234.",
        "verl/math": "1234",
        "dapo": "7 in $\\boxed{1234}$",
        "math_verify": "1234",
    }
    right = {name for name in PROTOCOLS if judge(text, reference, name).value}
    assert right == set(PROTOCOLS) - {"minerva", "hendrycks", "hendrycks/dollars", "verl/gsm8k", "verl/math", "dapo"}


@pytest.mark.parametrize(
    ("text", "value"), [("\\boxed{073}", 1.0), ("\\boxed{73.0}", 1.0), ("\\boxed{73.5}", 0.0), ("\\boxed{72+1}", 0.0)]
)
def test_aime_answers_are_integers(text, value):
    assert judge(text, 73, "aime").value == value
    with pytest.raises(ValueError, match="is no integer"):
        judge(text, "x", "aime")


FORMS = [
    lambda g: f"$\\boxed{{{g}}}$",
    lambda g: f"$\\boxed{{{g.replace(chr(92) + 'frac', chr(92) + 'dfrac')}}}$",
    lambda g: f"$\\boxed{{ {g} }}$",
    lambda g: f"Answer: ${g}$",
    lambda g: f"The final answer is ${g}$. I hope it is correct.",
    lambda g: f"Work.\n#### {g}",
]


@pytest.mark.real_data
@pytest.mark.parametrize("form", FORMS)
def test_every_restated_gold_of_math500_is_right_in_six_forms(form):
    path = DATA / "math500.jsonl"
    if not path.exists():
        pytest.skip("math500.jsonl is not beside the checkout, in ../shared/data")
    golds = [json.loads(line)["answer"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert [gold for gold in golds if not judge(form(gold), gold).value] == [] and len(golds) == 500
