"""Is the chosen letter of a multiple-choice question the right one?"""

from __future__ import annotations

import re
import string
from typing import Any

from llmrl.limits import limits
from llmrl.types import Prompt, Rollout, Score
from reward_models.extraction import TAIL
from reward_models.format_tags import after_thoughts

HEAD = 200  # characters of a statement that are read
PARAGRAPH_END = re.compile(r"\n[^\S\n]*\n")
OPEN, CLOSE = r"[\s(\[{*_$`\"'<]{0,8}", r"[\s)\]}*_$`\"'>]{0,8}"
MARK = re.compile(
    r"\\boxed\s{0,8}\{|<answer>|\b(?:answer|choice|option)\b(?:\s{0,8}[:=]|[^.\n:=]{0,40}?\s"
    r"(?:is|was|would\sbe|should\sbe|must\sbe)\b\s{0,8}:?)",
    re.IGNORECASE,
)
LEAD = re.compile(
    rf"{OPEN}(?:(?:both|either|probably|clearly|definitely|therefore|indeed|thus|the|option|options|choice|choices|letter|"
    rf"answer)\b:?{OPEN}|\\(?:text|textbf|mathrm|mathbf)\s?\{{{OPEN}){{0,4}}",
    re.IGNORECASE,
)
SEPARATOR = re.compile(rf"{CLOSE}(?:[,/&+;|]|\b(?:and|or|as\swell\sas)\b){{0,3}}{OPEN}(?:(?:option|choice)\s)?{OPEN}")
ARTICLE = re.compile(
    r"\s+(?!(?:and|or|because|since|as|is|was|but|not|over|rather|instead|by|due|for|which|given)\b)[a-z]"
)
LINE = re.compile(r"[(\[*_]{0,4}([A-Za-z])(?:[)\].:*_]{1,4}(?:\s|$)|$)")


@limits(seconds=10, confined=True)
def choice_answer(prompt: Prompt, rollout: Rollout, *, num_choices: int = 26) -> Score:
    """1.0 if the response settles on the letter that is prompt.reference, else 0.0.

    A choice is stated as \\boxed{B}, <answer>B</answer>, 'answer is (B)', 'Answer: B'; where there is no such mark, as a
    line that is 'B' or '(B)' or begins with 'B.' or 'B)'. The last one counts, so that an earlier one may be corrected;
    but different letters in one statement ('A or B') or in statements of one last paragraph are no answer: wrong.
    num_choices: how many letters there are, from A on. The reference is a letter ('B', '(B)', 'b.') or, as in MMLU, a
    number that counts from 0. Raises ValueError for any other reference.
    """
    letters = string.ascii_uppercase[:num_choices]
    expected = reference_letter(prompt.reference, letters)
    stated = final_choices(rollout.text, letters)
    evidence = {"read": stated, "expected": expected, "correct": stated == [expected]}
    if not stated:
        return Score(0.0, feedback="There is no final choice in the response.", evidence=evidence)
    if len(stated) > 1:
        return Score(0.0, feedback=f"There are several final choices: {', '.join(stated)}.", evidence=evidence)
    verdict = "correct" if evidence["correct"] else "wrong"
    return Score(float(evidence["correct"]), feedback=f"The final choice {stated[0]} is {verdict}.", evidence=evidence)


def final_choices(text: str, letters: str) -> list[str]:
    """The different letters that the last paragraph with a stated choice settles on, in their order."""
    paragraphs = PARAGRAPH_END.split(after_thoughts(text)[-TAIL:])
    for read in (marked, listed):
        for paragraph in reversed(paragraphs):
            if found := list(dict.fromkeys(read(paragraph, letters))):
                return found
    return []


def marked(paragraph: str, letters: str) -> list[str]:
    """The letters that follow the marks of an answer."""
    said = [paragraph[m.end() : m.end() + HEAD].lstrip().partition("\n")[0] for m in MARK.finditer(paragraph)]
    return [letter for one in said for letter in chosen(one, letters)]


def listed(paragraph: str, letters: str) -> list[str]:
    """The letters that lines begin with: 'B', '(B)', 'B. Paris'."""
    found = [LINE.match(line.strip()[:HEAD]) for line in paragraph.split("\n")]
    return [match[1].upper() for match in found if match and match[1].upper() in letters]


def chosen(statement: str, letters: str) -> list[str]:
    """The letters at the head of a statement: ['B'] of '(B) Paris', ['A', 'B'] of 'A or B', [] of 'a dog'."""
    at, found = LEAD.match(statement).end(), []
    while at < len(statement):
        letter, rest = statement[at], statement[at + 1 :]
        alone = not re.match(r"\w|['’]\w", rest) and not (letter in "AaIi" and ARTICLE.match(rest))
        if letter.upper() not in letters or not alone or (letter.islower() and re.match(r"\s+\w", rest)):
            break
        found.append(letter.upper())
        at += 1 + SEPARATOR.match(rest).end()
    return found


def reference_letter(reference: Any, letters: str) -> str:
    """The letter that a reference names. Raises ValueError."""
    if isinstance(reference, int) and not isinstance(reference, bool) and 0 <= reference < len(letters):
        return letters[reference]
    letter = reference.strip(" ().[]:*").upper() if isinstance(reference, str) else ""
    if len(letter) != 1 or letter not in letters:
        raise ValueError(
            f"reference is {reference!r:.80}; expected a letter of {letters[0]} to {letters[-1]}, or its index from 0. "
            "Map it: data.columns.reference"
        )
    return letter
