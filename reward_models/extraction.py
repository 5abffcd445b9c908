"""Finding the final answer in a response. Every search is linear in a tail of fixed size."""

from __future__ import annotations

import re
from typing import NamedTuple

TAIL = 20_000  # characters read from the end; an answer stands there, and a megabyte of text must cost nothing
LONGEST = 4_096  # characters of an answer

BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
SENTENCE = re.compile(r"\banswer\s*(?:is\s*:?|:|=)", re.IGNORECASE)
SENTENCE_END = re.compile(r"\n|\.(?=\s|$)")
NUMBER = re.compile(r"-?[0-9][0-9,]*(?:\.[0-9]+)?")


class Found(NamedTuple):
    """A final answer as written, and which mark it stood under."""

    text: str
    how: str


def final_answer(text: str, *, boxed_only: bool = False, last_number: bool = False) -> Found | None:
    """The last answer under the strongest mark: \\boxed{}, '####', <answer> tags, 'answer is'.

    last_number: where there is no mark, the last number in the text. None when nothing is found, also when what
    stands under the mark is empty or longer than 4,096 characters.
    """
    tail = text[-TAIL:]
    readers = [("boxed", boxed)]
    if not boxed_only:
        readers += [("hashes", after_hashes), ("answer_tag", in_answer_tag), ("sentence", in_sentence)]
        readers += [("last_number", number_at_end)] if last_number else []
    for how, reader in readers:
        found = reader(tail)
        if found and found.strip() and len(found) <= LONGEST:
            return Found(found.strip(), how)
    return None


def boxed(text: str) -> str | None:
    """What the balanced \\boxed{...} or \\fbox{...} that opens last and is not empty holds."""
    start, end, opened = -1, -1, []
    for match in BRACES.finditer(text):
        token = match.group()
        if token == "}" and opened:
            begin = opened.pop()
            if begin > start and text[begin : match.start()].strip():
                start, end = begin, match.start()
        elif token.endswith("{") and token != "\\{":
            opened.append(match.end() if token != "{" else -1)
    return text[start:end] if start >= 0 else None


def after_hashes(text: str) -> str | None:
    """The rest of the line after the last '####', GSM8K's mark."""
    _, mark, rest = text.rpartition("####")
    return rest.strip().split("\n")[0] if mark else None


def in_answer_tag(text: str) -> str | None:
    """What stands in the last <answer>...</answer>."""
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    return text[start + len("<answer>") : end] if start >= 0 else None


def in_sentence(text: str) -> str | None:
    """What follows the last 'answer is' or 'answer:', to the end of the sentence or line."""
    marks = list(SENTENCE.finditer(text))
    return SENTENCE_END.split(text[marks[-1].end() :].strip(), maxsplit=1)[0] if marks else None


def number_at_end(text: str) -> str | None:
    """The last number in the text."""
    numbers = NUMBER.findall(text)
    return numbers[-1] if numbers else None
