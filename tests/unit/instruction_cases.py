"""Made-up (instruction, arguments, response) cases, the same on every machine: 60 of each of IFEval's 25 instructions.

`tests/fixtures/instruction_verdicts.json` holds what lm-eval's own checkers say of them. Imports nothing of the
toolkit, so that the same cases can be put to other checkers.
"""

from __future__ import annotations

import hashlib
import json
import random

from language_samples import SAMPLES

PER_INSTRUCTION = 60
RELATIONS = ["less than", "at least"]
SENTENCES = [
    "The garden was quiet in the morning.",
    "Dr. Reed paid $3.50 for it!",
    "Is there anything else I can help with?",
    "We met at 10 a.m. near the old bridge, and then we walked.",
    "She said that NASA's plan can't fail.",
    "I'M SURE THAT THE U.S. TEAM CAN'T LOSE.",
    "Wait... what happened?!",
    "He wrote (in the margin) that nobody cares.",
    "My answer is no.",
    "Visit the AI lab, e.g. the one by J. Smith.",
    "She called it “a very long day” and left.",
    "Prices rose by 3.5 percent; the MAYOR AND THE COUNCIL did nothing.",
    "apples pears and plums are all they had",
]
BLOCKS = [
    "* first point\n* second point",
    "- one\n- two\n  - two and a half",
    "*\n* after an empty bullet",
    "**Bold start** of a line",
    "This is *very important* and **this too**.",
    "** ** and *  * are blank",
    "<<A Day at the Sea>>",
    "<< >>",
    "<<<nested> title>>> here",
    "Dear [name], I live at [address]. [unclosed",
    "[split\nover lines] [ok]",
    "P.S. Write soon.",
    "P. P. S. And again.",
    "P.P.S I forgot",
    "p. s. lower case",
    "Section 1\nIt begins.\nSection 2\nIt ends.",
    "SECTION 3: more\nSECTION4",
    "***",
    "******",
    "",
    "My answer is maybe.",
    '"Quoted all the way."',
    '{"a": [1, 2, {"b": null}]}',
    "```json\n[1, 2, 3]\n```",
    "elm trees grow here. Elm, elm!",
    "'Elm' is a tree.",
    "CANNOT STOP, WON'T STOP -- NOT NOW/EVER: 3D MAPS.",
]
WORDS = ["garden", "elm", "war", "nasa", "point", "AI", "day", "is", "zebra"]
MARKS = {  # what is drawn more often for an instruction
    "detectable_content:number_placeholders": "[",
    "detectable_content:postscript": ("P.S", "p. s"),
    "detectable_format:number_bullet_lists": ("* ", "- ", "*\n"),
    "detectable_format:number_highlighted_sections": ("*very", "** **", "**Bold"),
    "detectable_format:multiple_sections": ("Section", "SECTION"),
    "detectable_format:title": ("<<",),
    "length_constraints:number_paragraphs": ("***",),
    "keywords:existence": ("elm", "point"),
}
ASKED = "en es pt ar hi fr ru de ja it bn uk th ur ta te bg ko pl he fa vi ne sw kn mr gu pa ml fi".split()  # by IFEval


def cases() -> list[tuple[str, dict, str]]:
    """(instruction, arguments, response), in a fixed order."""
    found = []
    for instruction in ARGUMENTS:
        draw = random.Random(f"instruction cases 1 {instruction}")
        for _ in range(PER_INSTRUCTION):
            text = response(draw, instruction)
            found.append((instruction, ARGUMENTS[instruction](draw, text), text))
    return found


def digest(found: list[tuple[str, dict, str]]) -> str:
    """Changes when a case does."""
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def response(draw: random.Random, instruction: str) -> str:
    """One response, often of a form that the instruction looks at."""
    if instruction == "language:response_language":
        return " ".join(SAMPLES[draw.choice(list(SAMPLES))])
    pool = SENTENCES + BLOCKS + 5 * [one for one in BLOCKS if any(mark in one for mark in MARKS.get(instruction, ()))]
    parts = [draw.choice(pool) for _ in range(draw.randint(1, 9))]
    text = draw.choice([" ", "\n", "\n\n", "\n***\n", "\n******\n"]).join(parts)
    special = {
        "detectable_format:json_format": [
            '{"a": 1}',
            "```json\n{}\n```",
            "```\n[1,]\n```",
            "NaN",
            "[" * 3 + "]" * 3,
            "",
        ],
        "startend:quotation": ['"' + text + '"', '"', " '" + text + "' "],
        "startend:end_checker": [text + " The end.", text + ' the END."'],
        "combination:repeat_prompt": ["Write a poem. " + text, " write a POEM.\n" + text],
        "combination:two_responses": [
            "One.\n******\nTwo.",
            "One.******One.",
            "******A******B******",
            "A******\n******B",
        ],
        "change_case:english_capital": [" ".join(SAMPLES["en"]).upper()],
        "change_case:english_lowercase": [" ".join(SAMPLES["en"]).lower(), " ".join(SAMPLES["de"]).lower()],
        "punctuation:no_comma": [text.replace(",", "")],
        "length_constraints:nth_paragraph_first_word": [
            "Elm.\n\nThe elm.\n\nWe left",
            "'Elm's\n\n\n\nthe",
            "\n\nelm trees",
        ],
    }.get(instruction)
    return draw.choice(special) if special and draw.random() < 0.6 else text


def relation(draw: random.Random) -> str:
    return draw.choice(RELATIONS)


def near(draw: random.Random, number: int) -> int:
    """A threshold close to a count, so that being off by one shows."""
    return max(1, number + draw.choice([-1, 0, 0, 1, 2]))


ARGUMENTS = {
    "keywords:existence": lambda d, t: {"keywords": d.sample(["elm", "point", "day", "garden"], d.randint(1, 2))},
    "keywords:frequency": lambda d, t: keyword(d, t),
    "keywords:forbidden_words": lambda d, t: {"forbidden_words": d.sample(WORDS, d.randint(1, 3))},
    "keywords:letter_frequency": lambda d, t: letter(d, t),
    "language:response_language": lambda d, t: {"language": d.choice([code_of(t), d.choice(ASKED)])},
    "length_constraints:number_sentences": lambda d, t: {
        "num_sentences": near(d, t.count(". ") + t.count("! ") + t.count("? ") + 1),
        "relation": relation(d),
    },
    "length_constraints:number_paragraphs": lambda d, t: {"num_paragraphs": near(d, t.count("***") + 1)},
    "length_constraints:number_words": lambda d, t: {"num_words": near(d, len(t.split())), "relation": relation(d)},
    "length_constraints:nth_paragraph_first_word": lambda d, t: {
        "num_paragraphs": (n := max(1, len([p for p in t.split("\n\n") if p.strip()]))),
        "nth_paragraph": d.randint(1, n),
        "first_word": d.choice(["elm", "the", "we", *t.lower().split()[:1]]),
    },
    "detectable_content:number_placeholders": lambda d, t: {
        "num_placeholders": near(d, t.count("[") - t.count("[unclosed") - t.count("[split"))
    },
    "detectable_content:postscript": lambda d, t: {"postscript_marker": d.choice(["P.S.", "P.P.S"])},
    "detectable_format:number_bullet_lists": lambda d, t: {
        "num_bullets": near(d, sum(line.lstrip()[:2] in ("* ", "- ") for line in t.split("\n")))
    },
    "detectable_format:constrained_response": lambda d, t: {},
    "detectable_format:number_highlighted_sections": lambda d, t: {
        "num_highlights": near(d, t.count("*very") + 2 * t.count("**this") + t.count("**Bold"))
    },
    "detectable_format:multiple_sections": lambda d, t: {
        "section_spliter": (s := d.choice(["Section", "SECTION"])),
        "num_sections": near(d, t.count(s)),
    },
    "detectable_format:json_format": lambda d, t: {},
    "detectable_format:title": lambda d, t: {},
    "combination:two_responses": lambda d, t: {},
    "combination:repeat_prompt": lambda d, t: {"prompt_to_repeat": "Write a poem."},
    "startend:end_checker": lambda d, t: {"end_phrase": d.choice(["The end.", "left."])},
    "startend:quotation": lambda d, t: {},
    "change_case:english_capital": lambda d, t: {},
    "change_case:english_lowercase": lambda d, t: {},
    "change_case:capital_word_frequency": lambda d, t: {
        "capital_frequency": near(d, sum(word.isupper() for word in t.split())),
        "capital_relation": relation(d),
    },
    "punctuation:no_comma": lambda d, t: {},
}


def keyword(draw: random.Random, text: str) -> dict:
    word = draw.choice(WORDS)
    return {"keyword": word, "frequency": near(draw, text.lower().count(word.lower())), "relation": relation(draw)}


def letter(draw: random.Random, text: str) -> dict:
    sign = draw.choice("aetzQ")
    return {
        "letter": sign,
        "let_frequency": near(draw, text.lower().count(sign.lower())),
        "let_relation": relation(draw),
    }


def code_of(text: str) -> str:
    """The language of a response made of samples, where IFEval asks for that language; else English."""
    return next((code for code in ASKED if " ".join(SAMPLES[code]) == text), "en")
