"""IFEval's checks against lm-eval's own verdicts, by hand where they differ, and against hostile text."""

import inspect
import json
import time
from collections import Counter
from pathlib import Path

import pytest
from instruction_cases import cases, digest

from llmrl.types import Prompt, Rollout
from reward_models.instructions.checks import CHECKS, follows
from reward_models.instructions.following import instruction_following, relaxed
from reward_models.instructions.words import num_capital_words, num_sentences

VERDICTS = json.loads((Path(__file__).parents[1] / "fixtures" / "instruction_verdicts.json").read_text())
# Punkt without its trained parameters ends a sentence after 'Dr.' and 'a.m.'; with them, and here, it does not.
ABBREVIATED = {("length_constraints:number_sentences", number) for number in (4, 32, 45, 46, 47)}


def ask(names, given, **columns):
    return Prompt("p", text="?", columns={"instruction_id_list": names, "kwargs": given} | columns)


def say(text):
    return Rollout(ids=(), text=text)


def test_verdicts_equal_those_of_lm_eval():
    made, seen, differing = cases(), Counter(), set()
    assert len(made) == 1500 and VERDICTS["cases"] == digest(made) and set(VERDICTS["strict"]) == set(CHECKS)
    for instruction, arguments, text in made:
        number = seen[instruction]
        seen[instruction] += 1
        ours = follows(instruction, arguments, text), any(follows(instruction, arguments, v) for v in relaxed(text))
        if ours != tuple(VERDICTS[measure][instruction][number] == "1" for measure in ("strict", "loose")):
            differing.add((instruction, number))
    assert differing == ABBREVIATED


def test_every_check_is_seen_to_hold_and_to_fail():
    for measure in ("strict", "loose"):
        assert all({"0", "1"} == set(verdicts) for verdicts in VERDICTS[measure].values())


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("One. Two! Three? Four", 4),
        ("Dr. Reed met Mr. J. Smith at 5 a.m. near St. Ives.", 1),
        ("He left at 5 a.m. They stayed.", 2),
        ("Wait... what? Well... Yes.", 3),  # after three periods a capital letter begins a sentence
        ('She said "no." Then she left (at 3.5 p.m.).', 2),
        ("A title\n\nand a line", 1),
        ("1. First\n2. Second", 3),  # Punkt's own reading of lists
        ("Really?! Yes.", 2),
        ("你好。再见。", 2),
        ("", 0),
        (" \n", 0),
        (".", 1),
    ],
)
def test_sentences(text, number):
    assert num_sentences(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("NASA's plan", 1),
        ("I'M HERE", 3),
        ("I CAN'T GO", 4),
        ("I cannot", 1),
        ("YOU CANNOT (REALLY) GO", 5),
        ("COVID-19, A/B and U.S.: X,Y", 5),
        ("none Here aT all 123", 0),
        ("ONE--TWO “THREE”", 3),
    ],
)
def test_capital_words_are_those_of_the_penn_treebank(text, number):
    assert num_capital_words(text) == number


def test_arguments_are_text_and_never_patterns():
    assert follows("keywords:existence", {"keywords": ["c++", "(.*)"]}, "C++ has (.*) in it")
    assert not follows("keywords:existence", {"keywords": [".*"]}, "anything")
    assert follows("keywords:forbidden_words", {"forbidden_words": ["art", "c++"]}, "artist, c++x")
    assert not follows("keywords:forbidden_words", {"forbidden_words": ["c++"]}, "in C++.")
    # the original draws a letter at random here
    signs = {"letter": "#", "let_frequency": 2, "let_relation": "at least"}
    assert follows("keywords:letter_frequency", signs, "#a #b")


def test_the_value_is_all_or_a_share_and_the_feedback_names_what_is_missed():
    names = ["punctuation:no_comma", "startend:quotation", "punctuation:no_comma"]
    prompt = ask(names, [{"keywords": None, "num_words": None}, None, {}])
    both = instruction_following(prompt, say('"So be it"'))
    assert both.value == 1.0 and both.feedback == "Followed 3 of 3 instructions."
    one = instruction_following(prompt, say("So be it"))
    assert one.value == 0.0 and one.evidence == {
        "followed": [True, False, True],
        "missed": ["startend:quotation"],
        "strict": True,
    }
    assert one.feedback == "Followed 2 of 3 instructions. Not followed: startend:quotation."
    assert instruction_following(prompt, say("So be it"), share=True).value == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("name", "given", "text"),
    [
        ("startend:quotation", {}, 'Sure, here it is:\n"Quoted."'),
        ("startend:quotation", {}, '"Quoted."\nI hope this helps!'),
        ("startend:quotation", {}, 'Sure:\n"Quoted."\nThere.'),
        ("startend:quotation", {}, '**"Quoted."**'),
        ("startend:quotation", {}, 'Sure:\n**"Quoted."**\nThere.'),
    ],
)
def test_the_loose_measure_forgives_frames_and_asterisks(name, given, text):
    prompt = ask([name], [given])
    assert instruction_following(prompt, say(text)).value == 0.0
    assert instruction_following(prompt, say(text), strict=False).value == 1.0


def test_thoughts_are_not_judged_and_no_answer_follows_nothing():
    prompt = ask(["punctuation:no_comma"], [{}])
    assert instruction_following(prompt, say("<think>well, well</think>\nYes")).value == 1.0
    assert instruction_following(prompt, say("<think>well, well")).value == 0.0
    for empty in ("", " \n", "<think>so</think>", "x" * 1_000_001):
        assert instruction_following(prompt, say(empty)).value == 0.0
        assert instruction_following(prompt, say(empty), strict=False).value == 0.0


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({}, "expected two lists of one length"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}, "expected two lists of one length"),
        ({"instruction_id_list": [], "kwargs": []}, "expected two lists of one length"),
        ({"instruction_id_list": ["punctuation:no_coma"], "kwargs": [{}]}, "no_coma' is not known; expected one of"),
        ({"instruction_id_list": ["startend:end_checker"], "kwargs": [{"end_phrase": None}]}, "arguments do not fit"),
        ({"instruction_id_list": ["startend:end_checker"], "kwargs": [{"end_phrase": 3}]}, "arguments do not fit"),
        (
            {
                "instruction_id_list": ["length_constraints:number_words"],
                "kwargs": [{"num_words": 3, "relation": "about"}],
            },
            "expected 'less than' or 'at least'",
        ),
    ],
)
def test_rows_of_another_form_are_errors_and_never_zeros(columns, reason):
    with pytest.raises(ValueError, match=reason):
        instruction_following(Prompt("p", text="?", columns=columns), say("Yes."))


HOSTILE = [
    "[" * 10**6,
    "<" * 10**6,
    "<<" + "a" * 10**6,
    "\n" * 999_999 + "*",
    " " * 999_999 + "a",
    "*" * 10**6,
    "*a" * 500_000,
    "." * 10**6,
    "a. " * 333_000,
    "p." * 500_000,
    "p. " * 333_000,
    "Section " * 125_000,
    "I'M " * 250_000,
    '"' * 10**6,
    "{" * 10**6,
    '{"a":' * 200_000,
    "***" * 333_000,
    "elm" * 333_000,
    "\ud800\x00" * 500_000,
    "A'S" * 333_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:8]))
def test_a_megabyte_of_hostile_text_takes_linear_time(text):
    given = {
        "keywords": ["elm"], "keyword": "elm", "frequency": 2, "relation": "at least", "forbidden_words": ["elm"],
        "letter": "a", "let_frequency": 2, "let_relation": "at least", "language": "en", "num_sentences": 2,
        "num_paragraphs": 2, "num_words": 2, "nth_paragraph": 1, "first_word": "elm", "num_placeholders": 2,
        "postscript_marker": "P.S.", "num_bullets": 2, "num_highlights": 2, "section_spliter": "Section",
        "num_sections": 2, "prompt_to_repeat": "elm", "end_phrase": "elm", "capital_frequency": 2,
        "capital_relation": "at least",
    }  # fmt: skip
    for name, check in CHECKS.items():
        arguments = {key: given[key] for key in inspect.signature(check).parameters if key != "text"}
        start = time.thread_time()
        follows(name, arguments, text)
        assert time.thread_time() - start < 1.5, name
