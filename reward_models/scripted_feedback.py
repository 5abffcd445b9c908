"""A feedback environment without a judge: verbal feedback out of properties that can be checked."""

from __future__ import annotations

import hashlib

from llmrl.types import Prompt, Rollout, Score
from reward_models.equivalence import equivalent
from reward_models.extraction import final_answer
from reward_models.format_tags import is_tagged
from reward_models.math_answer import reference_answer

CORRECT = ("The answer is correct", "The result is right", "Accurate and correct", "A correct solution")
WRONG = ("The answer is wrong", "The result is not right", "Inaccurate and incorrect", "A wrong solution")
TIDY = ("cleanly structured", "well formatted", "neatly laid out", "in good form")
UNTIDY = ("poorly structured", "badly formatted", "untidily laid out", "in bad form")
SHORT = ("short", "brief", "concise", "succinct")
MEDIUM = ("of middling length", "of moderate length", "of ordinary length", "of usual length")
LONG = ("long", "lengthy", "verbose", "wordy")
POINTS = {(True, True): 10, (True, False): 7, (False, True): 2, (False, False): 0}  # (correct, tidy)


def scripted_feedback(
    prompt: Prompt,
    rollout: Rollout,
    *,
    tags: bool = True,
    include_length: bool = False,
    short_below: int = 32,
    long_above: int = 128,
) -> Score:
    """One sentence on correctness and form, and a score of 0 to 10 given as value = score / 10 (arXiv:2509.22638).

    Stands in for the paper's judge: like its summaries it names qualities and never says where or how. Correct: the
    final answer, or for want of a marked one the last number, equals prompt.reference. Good form: think and answer
    tags, or with `tags` off any final answer at all. include_length also says how long the response is, in tokens
    against `short_below` and `long_above`. The wording is drawn by a hash of prompt id and text.
    Raises ValueError when the prompt has no reference.
    """
    expected = reference_answer(prompt.reference)
    found = final_answer(rollout.text, last_number=True)
    correct = found is not None and equivalent(found.text, expected)
    tidy = is_tagged(rollout.text) if tags else found is not None
    phrases = [CORRECT if correct else WRONG, TIDY if tidy else UNTIDY]
    if include_length:
        size = len(rollout.ids)
        phrases.append(SHORT if size < short_below else LONG if size > long_above else MEDIUM)
    draw = hashlib.sha256(f"{prompt.id}\n{rollout.text}".encode(errors="surrogatepass")).digest()
    feedback = ", ".join(variants[byte % len(variants)] for variants, byte in zip(phrases, draw, strict=False)) + "."
    points = POINTS[correct, tidy]
    return Score(points / 10, feedback=feedback, evidence={"correct": correct, "tidy": tidy, "score": points})
