"""The scorer of stated confidence: the Brier score of q, and that only a q that can be read has one."""

from __future__ import annotations

import pytest

from llmrl.types import Prompt, Rollout
from reward_models.calibration import confidence, stated_confidence

PROMPT = Prompt(id="0", text="40 and 32?", reference="72")


def say(answer: int, stated: str) -> Rollout:
    return Rollout((0,), f"<solution>\\boxed{{{answer}}}</solution><confidence>{stated}</confidence>")


@pytest.mark.parametrize(
    ("answer", "stated", "value"),
    # the second rewards of the worked example in arXiv:2602.10231: c = 1, 0, 0, 1 and q = .8, .7, .3, .6
    [(72, "0.8", -0.04), (71, "0.7", -0.49), (71, ".3", -0.09), (72, " 0.6 ", -0.16)]
    + [(72, "1", 0.0), (72, "1.0", 0.0), (72, "0", -1.0), (71, "0", 0.0), (71, "1", -1.0)],
)
def test_the_score_is_the_square_of_what_confidence_is_off(answer, stated, value):
    score = stated_confidence(PROMPT, say(answer, stated))
    assert score.value == pytest.approx(value, abs=1e-12)
    assert score.evidence["confidence"] == float(stated)
    assert score.evidence["correct"] == (answer == 72)


@pytest.mark.parametrize("stated", ["", "high", "1.5", "-0.2", "90%", "0.5 or 0.9", "nan", "٠.٥", "0." + "9" * 40])
def test_what_cannot_be_read_earns_the_worst(stated):
    for answer in (71, 72):
        score = stated_confidence(PROMPT, say(answer, stated))
        assert score.value == -1.0 and score.evidence["confidence"] is None
        assert "one number from 0 to 1" in score.feedback


def test_a_second_confidence_is_none():
    once, twice = say(72, "1").text, say(72, "1").text + "<confidence>0</confidence>"
    assert (confidence(once, "confidence"), confidence(twice, "confidence")) == (1.0, None)
    assert confidence("</confidence>1<confidence>", "confidence") is None
    assert confidence("<sure>0.25</sure>", "sure") == 0.25


def test_without_a_reference_nothing_is_judged():
    with pytest.raises(ValueError, match="reference is None"):
        stated_confidence(Prompt(id="1", text="?"), say(72, "1"))


def test_the_protocol_decides_what_is_right():
    unboxed = Rollout((0,), "The answer is 72. <confidence>1</confidence>")
    assert stated_confidence(PROMPT, unboxed).value == 0.0
    assert stated_confidence(PROMPT, unboxed, protocol="llmrl/boxed-only@1").value == -1.0
