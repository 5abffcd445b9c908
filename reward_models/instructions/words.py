"""Sentences and words, without trained models: what IFEval's counts rest on."""

from __future__ import annotations

import re

END = re.compile(r"(?<![.?!])([.?!]++)[\"')\]}”’»*_]*+(?=\s|\Z)|[。！？।؟]++")
SPACE = re.compile(r"\s*")
OPENING = "\"'([{“‘«*_"
LONGEST_ABBREVIATION = 20  # characters looked at before a period

# After these a sentence goes on, whatever follows.
TITLES = frozenset("mr mrs ms dr prof st gen col lt sgt capt rep sen gov rev hon mt vs e.g i.e cf".split())
# After these it goes on where a number follows.
NUMBERED = frozenset("no vol fig pp p".split())
# After these a sentence ends where a capital letter follows.
ABBREVIATIONS = frozenset("a.m p.m inc ltd co corp jr sr etc al ph.d u.s u.k jan feb aug sept oct nov dec".split())

WORD = re.compile(r"\w+")
APART = re.compile(r"[\s;@#$%&?!()\[\]{}<>\"`«»“”„‘’*‒–—―]|--|''|\.{2,}|[:,](?![0-9])")
ENCLITIC = re.compile(r"'(?:[SM]|D|LL|RE|VE)\Z")
TWO_WORDS = frozenset("CANNOT GIMME GONNA GOTTA LEMME WANNA D'YE 'TIS 'TWAS".split())


def num_words(text: str) -> int:
    """Runs of letters, digits and underscores."""
    return sum(1 for _ in WORD.finditer(text))


def num_sentences(text: str) -> int:
    """Sentences: they end with . ? or ! before a space, unless the period is an abbreviation's, an initial's or three.

    Follows the Punkt algorithm with a fixed list of abbreviations; a new line alone ends no sentence.
    """
    ends = [match.end() for match in END.finditer(text) if ends_sentence(text, match)]
    rest = text[ends[-1] :] if ends else text
    return len(ends) + bool(rest.strip())


def ends_sentence(text: str, match: re.Match[str]) -> bool:
    """Whether a sentence ends with this punctuation: none of an abbreviation, an initial, a list's number or three dots."""
    after = SPACE.match(text, match.end()).end()
    if after == len(text) or match[1] is None:
        return True
    if match[1].strip("."):
        return True
    following = text[after : after + 5].lstrip(OPENING)[:1]
    if len(match[1]) > 1:
        return following.isupper()
    before = text[max(0, match.start() - LONGEST_ABBREVIATION) : match.start()]
    word = before.split()[-1].lstrip(OPENING) if before.strip() and not before[-1].isspace() else ""
    if word.lower() in TITLES or (len(word) == 1 and word.isalpha()):
        return not following.isalpha()
    if word.lower() in NUMBERED:
        return not following.isdecimal()
    if word.lower() in ABBREVIATIONS:
        return following.isupper()
    if word.replace(",", "").replace(".", "").isdecimal():
        return not following.islower()
    return True


def num_capital_words(text: str) -> int:
    """Words all in capitals, split as the Penn Treebank does: I'M, CAN'T and CANNOT are two, NASA's is one."""
    return sum(capitals(token) for token in APART.split(text) if token and not token.islower())


def capitals(token: str) -> int:
    """How many words all in capitals a token between spaces holds."""
    parts, rest = 0, token
    if rest[-2:] in ("'s", "'m", "'d") or rest[-3:] in ("'ll", "'re", "'ve", "n't"):
        rest = rest[: rest.rindex("n't" if rest.endswith("n't") else "'")]
    elif rest.endswith("N'T") and len(rest) > 3:
        parts, rest = 1, rest[:-3]
    elif (match := ENCLITIC.search(rest)) and match.start() > 0:
        parts, rest = 1, rest[: match.start()]
    return parts + rest.isupper() + (rest.strip(".").upper() in TWO_WORDS and rest.isupper())
