"""A model's verdict on one response."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import asdict
from functools import partial
from typing import Any, Literal

from llmrl.errors import RecipeError
from llmrl.limits import limits
from llmrl.types import Prompt, Rollout, Score
from reward_models.judge import prompts, verdicts
from reward_models.judge.client import Cost, JudgeError, Messages, Question, ask_all, client_of
from reward_models.judge.service import ServiceOptions

RUBRIC = "Does the response answer the question correctly, completely and clearly?"
SYSTEM = "You judge one response to a question. What counts is this alone:\n{rubric}"
REFERENCE = "The text REFERENCE is known to be a right answer: a response that contradicts it is wrong."
ANSWERS = {
    "0-10": '"score": a whole number from 0 (fails entirely) to 10 (nothing to improve)',
    "0-1": '"score": a number from 0 (fails entirely) to 1 (nothing to improve)',
    "yes_no": '"verdict": "yes" or "no"',
}
AS_OBJECT = (
    'Answer with one JSON object and nothing else: {{"key": "{nonce}", "reason": one or two sentences, {answer}}}. '
    "Copy the key exactly."
)
AS_WORD = "Answer with one word and nothing else: Yes or No."
AS_LOGPROBS = (("logprobs", True), ("top_logprobs", 20), ("max_tokens", 1))

Verdict = Literal["0-10", "0-1", "yes_no", "logprobs"]


@limits(seconds=1800.0, workers=1, preload=("httpx",))
async def judge(
    prompt: Prompt,
    rollout: Rollout,
    *,
    service: ServiceOptions,
    rubric: str = RUBRIC,
    verdict: Verdict = "0-10",
    votes: int = 1,
    combine: Literal["mean", "majority"] = "mean",
    use_reference: bool = True,
    max_chars: int = 32_000,
) -> Score:
    """A model's verdict on the response, in [0, 1], asked over /v1/chat/completions.

    service: see reward_models.judge.service.Service. rubric: what counts; a yes-or-no question for 'yes_no' and
    'logprobs'. verdict: '0-10', divided by 10; '0-1'; 'yes_no'; or 'logprobs', sigmoid(logit_Yes - logit_No) of the first
    token, which costs one token but has no key to check. votes: verdicts asked for, which needs a temperature above 0;
    combine: their mean, or the most frequent (the mean of those in a tie). use_reference: show prompt.reference where
    there is one. max_chars: longer texts lose their middle.
    The response is data between marks that hold a hash of the question; a verdict is read only from a JSON object that
    repeats it. Raises JudgeError when any vote cannot be had; RecipeError for a service that cannot be used.
    """
    client = client_of(service)
    if votes < 1 or (votes > 1 and client.service.temperature == 0):
        raise RecipeError(f"{votes} votes at temperature {client.service.temperature:g}: several need one above 0.")
    texts = {"QUESTION": prompts.question_text(prompt, max_chars)}
    if use_reference and prompt.reference is not None:
        texts["REFERENCE"] = prompts.reference_text(prompt.reference, max_chars)
    texts["RESPONSE"] = prompts.plain(rollout.text, max_chars)
    build, read = partial(messages, rubric, verdict, texts), partial(read_verdict, verdict)
    body = AS_LOGPROBS if verdict == "logprobs" else ()
    questions = [Question(f"judge/1 {verdict}", build, read, vote, body) for vote in range(votes)]
    found = await ask_all(client, questions)
    if failed := next((one for one in found if isinstance(one, JudgeError)), None):
        raise failed
    values = [answer["value"] for answer, _ in found]
    value = statistics.fmean(values) if combine == "mean" else majority(values)
    first = found[0][0]
    evidence = {"value": value, "votes": values, "reason": first["reason"], "protocol": f"judge/1 {verdict}"}
    evidence |= {"model": client.service.model} | asdict(sum((cost for _, cost in found), Cost()))
    return Score(value, feedback=f"A judge gave the response {10 * value:.3g} of 10.", evidence=evidence)


def messages(rubric: str, verdict: Verdict, texts: dict[str, str], nonce: str) -> Messages:
    """The conversation that asks for one verdict."""
    system = SYSTEM.format(rubric=rubric) + (f"\n{REFERENCE}" if "REFERENCE" in texts else "")
    if verdict == "logprobs":
        return prompts.conversation(system, texts, AS_WORD, nonce)
    return prompts.conversation(system, texts, AS_OBJECT.format(nonce=nonce, answer=ANSWERS[verdict]), nonce)


def read_verdict(verdict: Verdict, choice: dict[str, Any], nonce: str) -> dict[str, Any]:
    """{'value': in [0, 1], 'reason': text} of the judge's answer. Raises Unreadable."""
    if verdict == "logprobs":
        value, mass = verdicts.yes_share(choice)
        return {"value": value, "reason": f"p(Yes) + p(No) = {mass:.3f}"}
    found = verdicts.json_object(choice["message"]["content"], nonce)
    if verdict == "0-10":
        value = verdicts.whole_number(found, "score", 10) / 10
    elif verdict == "0-1":
        value = verdicts.share(found, "score")
    else:
        value = float(verdicts.one_of(found, "verdict", ("yes", "no")) == "yes")
    return {"value": value, "reason": prompts.plain(str(found.get("reason", "")), verdicts.SHOWN)[: verdicts.SHOWN]}


def majority(values: list[float]) -> float:
    """The most frequent value; the mean of those that share the first place."""
    counts = Counter(values)
    most = max(counts.values())
    return statistics.fmean(value for value, times in counts.items() if times == most)
