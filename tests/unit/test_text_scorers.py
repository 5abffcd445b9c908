"""Form, length, repetition and language of a response: numbers worked out by hand."""

import math
import time

import pytest
from language_samples import SAMPLES

from llmrl.ops.lengths import cosine
from llmrl.ops.lengths import overlong as overlong_penalty
from llmrl.types import Prompt, Rollout
from reward_models.cosine_length import cosine_length
from reward_models.format_tags import after_thoughts, format_tags
from reward_models.language import detect, language, profile
from reward_models.language_tables import LANGUAGES
from reward_models.length import length, overlong
from reward_models.repetition import repeated, repetition

PROMPT = Prompt("p", text="What is the sum of the two numbers in this list?", reference="7")


def say(text="", size=0, **fields):
    return Rollout(ids=tuple(range(size)), text=text, **fields)


TAGGED = "<think>a</think><answer>b</answer>"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (TAGGED, 1.0),
        ("<think>a</think>b", 0.5),
        ("<think>a</think><answer>b</answer></answer>", 0.75),
        ("<answer>b</answer><think>a</think>", 0.75),  # all tags, wrong order: no more than three
        (TAGGED + " or so", 0.75),
        ("b", 0.0),
    ],
)
def test_partial_credit_is_a_share_for_each_tag_that_occurs_once(text, value):
    assert format_tags(PROMPT, say(text), partial=True).value == value
    assert format_tags(PROMPT, say(text)).value == float(value == 1.0)


@pytest.mark.parametrize(
    ("text", "value"),
    [("<think>a</think> b", 1.0), ("<think>a</think>", 1.0), ("a</think>b", 0.0), ("<think><think>a</think>", 0.0)],
)
def test_without_an_answer_tag_it_is_think_format_reward(text, value):
    assert format_tags(PROMPT, say(text), answer="").value == value
    rewards = pytest.importorskip("trl.rewards")
    assert rewards.think_format_reward([[{"content": text}]]) == [value]


def test_a_prompt_may_have_opened_the_thoughts():
    assert format_tags(PROMPT, say("a</think><answer>b</answer>"), opened=True).value == 1.0
    assert format_tags(PROMPT, say(TAGGED), opened=True).value == 0.0
    missing = format_tags(PROMPT, say("<think>a</think>"))
    assert missing.feedback == "Expected each of these tags exactly once: <answer> </answer>."
    assert format_tags(PROMPT, say(TAGGED + "!")).feedback.startswith("Expected nothing but <think>...</think>...")


def test_after_thoughts():
    assert after_thoughts("<think>a</think>b</think> c") == " c"
    assert after_thoughts("<think>a") == "<think>a"


def test_length_counts_what_the_policy_wrote():
    values = [length(PROMPT, say(size=size), min_tokens=2, max_tokens=4).value for size in range(7)]
    assert values == [0, 0, 1, 1, 1, 0, 0]
    assert length(PROMPT, say(size=3, truncated=True), max_tokens=4).value == 0.0
    tool = say(size=6, loss_mask=(True, False, False, True, True, False))
    assert length(PROMPT, tool, max_tokens=4).evidence["tokens"] == 3
    assert length(PROMPT, say(size=1), min_tokens=2, max_tokens=4).feedback == "The response is too short."
    with pytest.raises(ValueError, match="expected 0 <= min <= max"):
        length(PROMPT, say(), min_tokens=5, max_tokens=4)


def test_overlong_falls_over_the_buffer():
    # 80 + 20: 0 to 80, -(85 - 80)/20 = -0.25, -1 from 100 on
    assert [overlong(PROMPT, say(size=n), max_tokens=100, buffer=20).value for n in (80, 85, 100, 120)] == [
        0,
        -0.25,
        -1,
        -1,
    ]
    assert [overlong_penalty(n, max_tokens=100, buffer=0) for n in (99, 100, 101)] == [0, 0, -1]
    rewards = pytest.importorskip("trl.rewards")
    theirs = rewards.get_soft_overlong_punishment(100, 20)([[0] * n for n in range(130)])
    assert [overlong_penalty(n, max_tokens=100, buffer=20) for n in range(130)] == theirs
    with pytest.raises(ValueError, match="expected 0 <= buffer <= max_tokens"):
        overlong(PROMPT, say(), max_tokens=10, buffer=20)


def test_the_cosine_runs_from_one_end_to_the_other():
    at = [cosine(n, max_tokens=100, at_zero=2.0, at_max=1.0) for n in (0, 50, 100, 200)]
    assert at == pytest.approx([2.0, 1.5, 1.0, 1.0])
    assert cosine(25, max_tokens=100, at_zero=-10, at_max=0) == pytest.approx(-5 * (1 + math.sqrt(0.5)))


def test_cosine_length_prefers_short_right_and_long_wrong_answers():
    def value(answer, size, **options):
        return cosine_length(PROMPT, say(f"\\boxed{{{answer}}}", size), max_tokens=100, **options).value

    assert [value(7, 0), value(7, 50), value(7, 99)] == pytest.approx([2.0, 1.5, 1.0], abs=1e-3)
    assert [value(8, 0), value(8, 50), value(8, 99)] == pytest.approx([-10.0, -5.0, 0.0], abs=1e-2)
    assert value(7, 100) == value(8, 100) == -10.0
    assert value(8, 50, wrong_short=-1.0, wrong_long=-0.5) == pytest.approx(-0.75)
    assert cosine_length(PROMPT, say("\\boxed{7}", 5, truncated=True), max_tokens=100).value == -10.0
    assert cosine_length(PROMPT, say("it is 7", 50), max_tokens=100).value == pytest.approx(-5.0)
    long = cosine_length(PROMPT, say("\\boxed{7}", 100), max_tokens=100)
    assert long.feedback == "The final answer 7 is correct. The response is too long."
    with pytest.raises(ValueError, match="reference"):
        cosine_length(Prompt("p", text="?"), say("7"), max_tokens=100)


def test_repetition_is_the_share_of_ngrams_seen_before():
    # 5 5 5 5 5 has four bigrams, one of them distinct: 1 - 1/4
    ids = Rollout(ids=(5,) * 5, text="")
    assert repetition(PROMPT, ids, n=2).value == -0.75
    assert repetition(PROMPT, ids, n=2, penalty=-0.5).value == -0.375
    assert repetition(PROMPT, ids, n=6).value == 0.0
    text = say("To be or not TO BE or not")  # six trigrams, four distinct
    assert repetition(PROMPT, text, unit="words").value == pytest.approx(-1 / 3)
    assert repetition(PROMPT, text, unit="words").feedback == "33% of the response repeats what it said before."
    rewards = pytest.importorskip("trl.rewards")
    some = [[1, 2, 3, 1, 2, 3, 1], [1, 2], [], [4] * 9, [1, 2, 3, 4]]
    theirs = rewards.get_repetition_penalty_reward(3, -2.0)(some)
    assert [repetition(PROMPT, Rollout(ids=tuple(one), text=""), penalty=-2.0).value for one in some] == theirs
    with pytest.raises(ValueError, match="n of at least 1 and a penalty of at most 0"):
        repetition(PROMPT, ids, penalty=1.0)
    assert repeated("abab", 1) == 0.5


def test_samples_cover_every_language_and_each_is_told():
    assert set(SAMPLES) == set(LANGUAGES)
    wrong = {(code, n) for code, some in SAMPLES.items() for n, one in enumerate(some) if detect(one) != code}
    assert not wrong


def test_detect_says_nothing_where_there_is_nothing_to_go_by():
    assert [detect(text) for text in ("", "12 + 3 = 15", "Zebra", "xqz " * 100, "🐰" * 9)] == [None] * 5
    assert detect("THE CAT IS ON THE MAT AND IT WILL NOT MOVE") == "en"


@pytest.mark.parametrize("code", sorted(LANGUAGES))
def test_a_whole_response_in_the_language_has_share_one(code):
    score = language(PROMPT, say(" ".join(SAMPLES[code])), expected=code)
    assert score.value == 1.0 and score.evidence["found"] == {code: 1.0} and score.feedback is None


def test_a_mixed_response_has_the_share_of_its_letters():
    german, english, chinese = SAMPLES["de"][1], SAMPLES["en"][1], SAMPLES["zh"][1]
    letters = {text: sum(one.isalpha() for one in text) for text in (german, english, chinese)}
    mixed = say(f"{german} {english}")
    expected = letters[german] / (letters[german] + letters[english])
    assert language(PROMPT, mixed, expected="de").value == pytest.approx(expected)
    half = language(PROMPT, say(chinese + english), expected="zh")
    assert half.value == pytest.approx(3 * letters[chinese] / (3 * letters[chinese] + letters[english]))
    assert "of the response is in the expected language (zh)" in half.feedback
    assert language(PROMPT, mixed, expected="zh").value == 0.0


def test_words_of_no_language_do_not_count_and_few_words_do():
    assert language(PROMPT, say("Zebra!"), expected="en").value == 1.0
    assert language(PROMPT, say("Zebra!"), expected="ru").value == 0.0
    assert language(PROMPT, say("xqz vvk " * 20), expected="en").value == 0.0
    assert language(PROMPT, say("12 + 3"), expected="en").value == 0.0


def test_the_expected_language_is_the_option_the_column_or_the_questions():
    french = say(" ".join(SAMPLES["fr"]))
    assert language(PROMPT, french).value == 0.0  # the question is English
    assert language(Prompt("p", text=SAMPLES["fr"][0]), french).value == 1.0
    assert language(Prompt("p", text="?", columns={"language": "fr"}), french).value == 1.0
    with pytest.raises(ValueError, match="expected language is 'frr'; expected a code of ar bg .* Did you mean fr?"):
        language(PROMPT, french, expected="frr")
    with pytest.raises(ValueError, match="expected language is None"):
        language(Prompt("p", text="1 + 1?"), french)


def test_a_homoglyph_is_of_its_own_script():
    # 31 letters, four of them Cyrillic: two in the second word, one each in the fourth and the sixth
    assert profile("the саt is оn the mаt and it is not there")["en"] == 27


@pytest.mark.parametrize(
    "text",
    [
        "<think>" * 143_000,
        "</think>" * 125_000,
        "a" * 10**6,
        "a " * 500_000,
        "the " * 250_000,
        "." * 10**6,
        "a." * 500_000,
        "'a" * 500_000,
        "é" * 10**6,
        "你" * 10**6,
        "\ud800\x00" * 500_000,
        " " * 10**6,
    ],
    ids=lambda text: repr(text[:8]),
)
def test_a_megabyte_of_hostile_text_takes_linear_time(text):
    for scorer, options in [
        (format_tags, {"partial": True}),
        (repetition, {"unit": "words"}),
        (language, {"expected": "en"}),
        (cosine_length, {"max_tokens": 10}),
    ]:
        start = time.thread_time()
        assert math.isfinite(scorer(PROMPT, say(text), **options).value)
        assert time.thread_time() - start < 1.5, scorer.__name__


def test_a_million_tokens_are_counted_in_linear_time():
    start = time.thread_time()
    assert repetition(PROMPT, say(size=10**6), n=3).value == 0.0
    assert time.thread_time() - start < 5
