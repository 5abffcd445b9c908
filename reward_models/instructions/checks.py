"""The 25 checks of IFEval (arXiv:2311.07911), one function each, and the table that names them.

A check takes the response, which is not blank, and the instruction's own arguments; it says whether the response
follows. Arguments come from the data and are taken literally, as text: never as a pattern.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Literal

from reward_models.instructions.words import num_capital_words, num_sentences, num_words
from reward_models.language import detect

Relation = Literal["less than", "at least"]
Check = Callable[..., bool]

DIVIDER = re.compile(r"\s?\*\*\*\s?")
HIGHLIGHT = re.compile(r"\*[^\n*]*\*")
DOUBLE_HIGHLIGHT = re.compile(r"\*\*[^\n*]*\*\*")
POSTSCRIPTS = {"P.P.S": re.compile(r"p\.\s?p\.\s?s"), "P.S.": re.compile(r"p\.\s?s\.")}
FIRST_WORD_ENDS = re.compile(r"[.,?!'\"]")
OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def counts(number: int, relation: Relation, threshold: int) -> bool:
    """Whether a count is 'less than' or 'at least' the threshold. Raises ValueError for another relation."""
    if relation not in ("less than", "at least"):
        raise ValueError(f"relation is {relation!r:.80}; expected 'less than' or 'at least'")
    return number < threshold if relation == "less than" else number >= threshold


def literal(words: str, *, alone: bool = False) -> re.Pattern[str]:
    """A pattern for exactly these words in any case; alone: not as a part of longer words."""
    pattern = re.escape(words)
    return re.compile(rf"(?<!\w){pattern}(?!\w)" if alone else pattern, re.IGNORECASE)


def keywords_exist(text: str, *, keywords: list[str]) -> bool:
    return all(literal(word).search(text) for word in keywords)


def keyword_frequency(text: str, *, keyword: str, frequency: int, relation: Relation) -> bool:
    return counts(sum(1 for _ in literal(keyword.strip()).finditer(text)), relation, frequency)


def forbidden_words(text: str, *, forbidden_words: list[str]) -> bool:
    return not any(literal(word, alone=True).search(text) for word in forbidden_words)


def letter_frequency(text: str, *, letter: str, let_frequency: int, let_relation: Relation) -> bool:
    return counts(text.lower().count(letter.strip().lower()), let_relation, let_frequency)


def response_language(text: str, *, language: str) -> bool:
    return detect(text) in (language, None)  # a text that tells no language follows, as in the original


def number_sentences(text: str, *, num_sentences: int, relation: Relation) -> bool:
    return counts(sentences_in(text), relation, num_sentences)


def number_paragraphs(text: str, *, num_paragraphs: int) -> bool:
    """Paragraphs stand between lines of ***; none but the first and the last may be empty."""
    blank = [not part.strip() for part in DIVIDER.split(text)]
    outer = blank[:1] + blank[1:][-1:]
    return not any(blank[1:-1]) and len(blank) - sum(outer) == num_paragraphs


def number_words(text: str, *, num_words: int, relation: Relation) -> bool:
    return counts(words_in(text), relation, num_words)


def nth_paragraph_first_word(text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs stand between two newlines; the blank ones do not count, but they do when looking for the n-th."""
    if not 1 <= nth_paragraph <= num_paragraphs:
        raise ValueError(f"nth_paragraph is {nth_paragraph} of {num_paragraphs} paragraphs; expected one of them")
    paragraphs = text.split("\n\n")
    num = sum(1 for one in paragraphs if one.strip())
    if num != num_paragraphs or not paragraphs[nth_paragraph - 1].strip():
        return False
    word = paragraphs[nth_paragraph - 1].split(maxsplit=1)[0].lstrip("'").lstrip('"')
    return FIRST_WORD_ENDS.split(word, maxsplit=1)[0].lower() == first_word.lower()


def number_placeholders(text: str, *, num_placeholders: int) -> bool:
    """At least so many [placeholders], each on one line."""
    found = 0
    for line in text.split("\n"):
        start = line.find("[")
        while start >= 0 and (end := line.find("]", start + 1)) >= 0:
            found, start = found + 1, line.find("[", end + 1)
    return found >= num_placeholders


def postscript(text: str, *, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    pattern = POSTSCRIPTS.get(marker) or re.compile(re.escape(marker.lower()))
    return pattern.search(text.lower()) is not None


def number_bullet_lists(text: str, *, num_bullets: int) -> bool:
    """Exactly so many lines that begin with a hyphen, or with one asterisk."""
    lines = [line.lstrip() for line in text.split("\n")]
    found, at = sum(line.startswith("-") for line in lines), 0
    while at < len(lines):
        alone = lines[at] == "*" and at + 1 < len(lines)  # takes the next line for its text
        found += alone or (lines[at][:1] == "*" and lines[at][1:2] not in ("", "*"))
        at += 2 if alone else 1
    return found == num_bullets


def constrained_response(text: str) -> bool:
    return any(option in text for option in OPTIONS)


def number_highlighted_sections(text: str, *, num_highlights: int) -> bool:
    """At least so many *highlighted* or **highlighted** stretches that are not blank; the latter can count twice."""
    found = sum(1 for m in HIGHLIGHT.finditer(text) if m.group().strip("*").strip())
    found += sum(1 for m in DOUBLE_HIGHLIGHT.finditer(text) if m.group()[2:-2].strip())
    return found >= num_highlights


def multiple_sections(text: str, *, section_spliter: str, num_sections: int) -> bool:
    """At least so many times the splitter with a number after it."""
    pattern = re.compile(re.escape(section_spliter.strip()) + r"\s?[0-9]")
    return sum(1 for _ in pattern.finditer(text)) >= num_sections


def json_format(text: str) -> bool:
    """The whole response is JSON, in a fence or not."""
    text = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def title(text: str) -> bool:
    """<<A title>> that is not blank, on one line."""
    for line in text.split("\n"):
        start = line.find("<<")
        end = line.rfind(">>", start + 3) if start >= 0 else -1
        if end >= 0 and line[start:end].lstrip("<").rstrip(">").strip():
            return True
    return False


def two_responses(text: str) -> bool:
    """Two different responses with ****** between them."""
    parts = [part.strip() for part in text.split("******")]
    given = [part for part in parts if part]
    return all(parts[1:-1]) and len(given) == 2 and given[0] != given[1]


def repeat_prompt(text: str, *, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end_checker(text: str, *, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def english_capital(text: str) -> bool:
    return text.isupper() and detect(text) in ("en", None)


def english_lowercase(text: str) -> bool:
    return text.islower() and detect(text) in ("en", None)


def capital_word_frequency(text: str, *, capital_frequency: int, capital_relation: Relation) -> bool:
    return counts(num_capital_words(text), capital_relation, capital_frequency)


def no_comma(text: str) -> bool:
    return "," not in text


sentences_in, words_in = num_sentences, num_words  # arguments of two checks have these names

CHECKS: dict[str, Check] = {
    "keywords:existence": keywords_exist,
    "keywords:frequency": keyword_frequency,
    "keywords:forbidden_words": forbidden_words,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": response_language,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:number_words": number_words,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": number_bullet_lists,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:number_highlighted_sections": number_highlighted_sections,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:json_format": json_format,
    "detectable_format:title": title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeat_prompt,
    "startend:end_checker": end_checker,
    "startend:quotation": quotation,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "change_case:capital_word_frequency": capital_word_frequency,
    "punctuation:no_comma": no_comma,
}


def follows(instruction: str, arguments: dict[str, Any], text: str) -> bool:
    """Whether a response follows one instruction; a blank one follows none.

    Raises ValueError for an instruction that is not known, and for arguments that are missing, unknown or unusable.
    """
    check = CHECKS.get(instruction)
    if check is None:
        raise ValueError(f"instruction {instruction!r:.80} is not known; expected one of {', '.join(CHECKS)}")
    if not text.strip():
        return False
    try:
        return bool(check(text, **arguments))
    except (TypeError, AttributeError) as error:
        raise ValueError(f"instruction {instruction}: its arguments do not fit: {error}") from error
