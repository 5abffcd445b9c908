"""Which language is a text in, and how much of it? By script, and by the commonest words where scripts are shared."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from typing import NamedTuple

from llmrl.errors import nearest
from llmrl.limits import limits
from llmrl.types import Prompt, Rollout, Score
from reward_models.language_tables import LANGUAGES, LETTERS, SCRIPTS, SYLLABIC, WORDS

LONGEST = 200_000  # characters that are read
FEW = 20  # words; in fewer, none of the known words may well occur
SPARSE = 0.04  # votes a word; text of a known language has about 0.3
LEAD = 1.5  # votes by which a sentence is in another language than the text around it
LETTER_VOTE = 0.5  # of a word with a letter of the language
SHORT_TITLE = 12  # signs of Han between Japanese sentences that need no kana

SENTENCE_END = r"[.!?;\n。！？；।؟۔]+"
UNDETERMINED = "und"


class Vocabulary(NamedTuple):
    """What the tables say, turned round: votes of a word and of a letter for languages; scripts with one language."""

    words: dict[str, tuple[tuple[str, float], ...]]
    letters: dict[str, tuple[tuple[str, float], ...]]
    alone: dict[str, str]
    pattern: re.Pattern[str]
    marked: re.Pattern[str]


@limits(seconds=20, confined=True)
def language(prompt: Prompt, rollout: Rollout, *, expected: str | None = None) -> Score:
    """The share of the response that is in the expected language, from 0.0 to 1.0 (arXiv:2501.12948, section 2.3.2).

    expected: an ISO 639-1 code; None: the prompt's column `language`, or else the language of the question. Shares are
    of letters, a sign of Chinese, Japanese or Korean counting for two or three. Script tells languages apart where it
    can, and sentence by sentence the commonest words do; a short text without any of them counts as expected where its
    script fits, a long one as no language. Everything counts, code and formulas too, thoughts included. A response
    without letters gets 0.0. The first 200,000 characters are read. Raises ValueError for a language that is not known,
    or when the question's cannot be told.
    """
    code = expected or prompt.columns.get("language") or detect(prompt.question())
    if code not in LANGUAGES:
        raise ValueError(
            f"the expected language is {code!r:.80}; expected a code of {' '.join(sorted(LANGUAGES))}."
            f"{nearest(str(code), LANGUAGES)} Set the option `expected` or the column `language`."
        )
    weights = profile(rollout.text)
    total = sum(weights.values())
    share = (weights[code] + weights[LANGUAGES[code]]) / total if total else 0.0
    found = {name: round(weight / total, 4) for name, weight in weights.most_common(3)}
    feedback = f"{share:.0%} of the response is in the expected language ({code})." if share < 1 else None
    return Score(share, feedback=feedback, evidence={"expected": code, "found": found})


def detect(text: str) -> str | None:
    """The code of the language that most of the text is in; None where there are no letters or no known words."""
    weights = profile(text)
    best = max(weights, key=weights.__getitem__, default=None)
    return best if best in LANGUAGES else None


def profile(text: str) -> Counter[str]:
    """Letters of the text by language; under the script's name those too few to tell, under 'und' those of none."""
    sentences = sentences_of(text[:LONGEST])
    everything: dict[str, list[str]] = {}
    for sentence in sentences:
        for script, words in sentence.items():
            everything.setdefault(script, []).extend(words)
    usual = {script: dominant(script, words) for script, words in everything.items()}
    weights: Counter[str] = Counter()
    for sentence in sentences:
        japanese = "kana" in sentence or ("kana" in everything and num_letters(sentence.get("han", ())) <= SHORT_TITLE)
        for script, words in sentence.items():
            name = "ja" if script == "han" and japanese else spoken(script, words, usual[script])
            weights[name] += num_letters(words) * SYLLABIC.get(script, 1)
    return weights


def sentences_of(text: str) -> list[dict[str, list[str]]]:
    """The words of each sentence, in lower case, by their script."""
    found: list[dict[str, list[str]]] = [{}]
    for match in vocabulary().pattern.finditer(text.lower()):
        if match.lastgroup != "end":
            found[-1].setdefault(match.lastgroup or "", []).append(match.group())
        elif found[-1]:
            found.append({})
    return found


def dominant(script: str, words: list[str]) -> str:
    """The language of all words of a script together; the script's own name where there is too little to go by."""
    known = vocabulary()
    if script in known.alone:
        return known.alone[script]
    votes = votes_of(words)
    best = max(LANGUAGES, key=votes.__getitem__)  # of equals the first in the table
    if not votes[best] or votes[best] < SPARSE * len(words):
        return UNDETERMINED if len(words) >= FEW else script
    return best


def spoken(script: str, words: list[str], usual: str) -> str:
    """The language of a sentence's words: the usual one, unless another leads by enough."""
    if script in vocabulary().alone or len(words) == 1:
        return usual
    votes = votes_of(words)
    best = max(votes, key=votes.__getitem__, default=usual)
    return best if votes[best] >= votes[usual] + LEAD else usual


def votes_of(words: list[str]) -> Counter[str]:
    """What the words say for each language; a word that several share is divided between them."""
    known = vocabulary()
    votes: Counter[str] = Counter()
    for word, times in Counter(words).items():
        for code, vote in known.words.get(word, ()):
            votes[code] += vote * times
        for letter in set(known.marked.findall(word[:100])):
            for code, vote in known.letters[letter]:
                votes[code] += vote * times * LETTER_VOTE
    return votes


def num_letters(words: list[str] | tuple[str, ...]) -> int:
    """Letters in all words."""
    return sum(map(len, words))


@cache
def vocabulary() -> Vocabulary:
    """The tables, turned round once."""
    scripts = list(LANGUAGES.values())
    alone = {script: code for code, script in LANGUAGES.items() if scripts.count(script) == 1}
    words, letters = shared({c: w.split() for c, w in WORDS.items()}), shared(LETTERS)
    pattern = "|".join(f"(?P<{name}>[{signs}]+(?:['’][{signs}]+)?)" for name, signs in SCRIPTS.items())
    pattern += f"|(?P<end>{SENTENCE_END})"
    marked = re.compile(f"[{''.join(letters)}]")
    return Vocabulary(words, letters, alone, re.compile(pattern), marked)


def shared(table: dict[str, list[str]] | dict[str, str]) -> dict[str, tuple[tuple[str, float], ...]]:
    """item -> (language, vote) for each language that lists it; the votes of an item add up to 1."""
    owners: dict[str, list[str]] = {}
    for code, listed in table.items():
        for item in set(listed):
            owners.setdefault(item, []).append(code)
    return {item: tuple((code, 1 / len(codes)) for code in codes) for item, codes in owners.items()}
