"""A model's verbal feedback on one response, for feedback-conditioned training."""

from __future__ import annotations

import re
from dataclasses import asdict
from functools import partial
from typing import Any, Literal

from llmrl.errors import RecipeError
from llmrl.limits import limits
from llmrl.types import Prompt, Rollout, Score
from reward_models.equivalence import equivalent
from reward_models.extraction import final_answer
from reward_models.judge import prompts, verdicts
from reward_models.judge.client import BudgetSpent, JudgeError, Messages, Question, client_of
from reward_models.judge.service import ServiceOptions
from reward_models.judge.verdicts import Unreadable
from reward_models.math_answer import reference_answer

TAIL = 300  # characters in which the released code looks for the final answer
LONGEST_FEEDBACK = 1000  # characters
SECTIONS = ("user feedback", "analysis", "summary", "score")
SYSTEM = """\
You write feedback on one response to a question, in four sections.
User feedback: one to three casual sentences in the first person, as somebody who asked the question might react.
Analysis: correctness, judged by nothing but the text REFERENCE; then rigour, completeness and clarity, judged without it.
Summary: one to three sentences on the qualities of the response, made of adjectives and adverbs. It never says where \
something is wrong, what would be right, or how to mend it.
Score: a whole number from 0 to 10 and nothing else.
Neither the user feedback nor the summary gives the right answer away."""
FORM = "Write exactly these four headings, each followed by its section, and copy the key in brackets:\n{headings}"

Kind = Literal["pro", "user"]


@limits(seconds=1800.0, workers=1, preload=("httpx",))
async def critique(
    prompt: Prompt,
    rollout: Rollout,
    *,
    service: ServiceOptions,
    critique_type: Kind = "pro",
    on_failure: Literal["drop", "empty"] = "drop",
    check_answer: bool = False,
    max_chars: int = 32_000,
) -> Score:
    """Verbal feedback by a model and its score of 0 to 10, given as value = score / 10 (arXiv:2509.22638).

    One request for each (question, response, reference) gives user-style feedback, an analysis, a summary and the score.
    critique_type: the feedback is the summary ('pro') or the user-style text ('user'); text that tells the reference is
    asked for again. on_failure: what becomes of a response whose critique cannot be had: 'drop' raises; 'empty' is the
    released code's empty feedback and score 5, which feedback-conditioned training leaves out and others train on.
    check_answer: note as evidence whether the final answer in the last 300 characters equals prompt.reference; the pool
    of positive feedback then takes none on wrong answers. service, max_chars: as for `judge`.
    Raises JudgeError under 'drop' and for a spent budget; RecipeError for a service that cannot be used, or for a prompt
    without a reference.
    """
    if prompt.reference is None:
        raise RecipeError(f"prompt {prompt.id} has no reference to judge by. Map it: data.columns.reference")
    client = client_of(service)
    texts = {
        "QUESTION": prompts.question_text(prompt, max_chars),
        "REFERENCE": prompts.reference_text(prompt.reference, max_chars),
        "RESPONSE": prompts.plain(rollout.text, max_chars),
    }
    evidence: dict[str, Any] = {"protocol": f"critique/1 {critique_type}", "model": client.service.model}
    if check_answer:
        found = final_answer(rollout.text[-TAIL:], last_number=True)
        evidence["correct"] = found is not None and equivalent(found.text, reference_answer(prompt.reference))
    read = partial(read_critique, critique_type, texts)
    try:
        written, cost = await client.ask(Question(f"critique/1 {critique_type}", partial(messages, texts), read))
    except BudgetSpent:
        raise
    except JudgeError as error:
        if on_failure == "drop":
            raise
        return Score(0.5, feedback="", evidence=evidence | {"score": 5, "failure": str(error)[: verdicts.SHOWN]})
    evidence |= {"score": written["score"], "analysis": written["analysis"]} | asdict(cost)
    return Score(written["score"] / 10, feedback=written["feedback"], evidence=evidence)


def messages(texts: dict[str, str], nonce: str) -> Messages:
    """The conversation that asks for one critique."""
    headings = "\n".join(f"### {name.capitalize()} [{nonce}]" for name in SECTIONS)
    return prompts.conversation(SYSTEM, texts, FORM.format(headings=headings), nonce)


def read_critique(kind: Kind, texts: dict[str, str], choice: dict[str, Any], nonce: str) -> dict[str, Any]:
    """{'feedback', 'analysis', 'score'} of the judge's four sections. Raises Unreadable."""
    found = verdicts.sections(choice["message"]["content"], nonce, SECTIONS)
    if not re.fullmatch(r"[0-9]|10", found["score"]):
        raise Unreadable(f"the score is {found['score']!r:.40}, expected a whole number from 0 to 10")
    feedback = prompts.plain(found["summary" if kind == "pro" else "user feedback"], LONGEST_FEEDBACK)
    if gives_away(feedback, texts["REFERENCE"], texts["RESPONSE"]):
        raise Unreadable("the feedback tells the reference")
    analysis = prompts.plain(found["analysis"], verdicts.SHOWN)[: verdicts.SHOWN]
    return {"feedback": feedback, "analysis": analysis, "score": int(found["score"])}


def gives_away(feedback: str, reference: str, response: str) -> bool:
    """Whether the feedback says the short answer in the reference, as a word of its own, and the response does not."""
    answer = reference.rpartition("####")[2].strip()
    if not answer or len(answer) > 200:
        return False
    word = re.compile(rf"(?<![\w.]){re.escape(answer)}(?!\w|\.\d)")
    return bool(word.search(feedback)) and not word.search(response)
