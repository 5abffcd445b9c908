"""Siblings compared with each other by a model, in both orders."""

from __future__ import annotations

import random
from dataclasses import asdict
from functools import partial
from typing import Any, Literal, NamedTuple

from llmrl.errors import RecipeError
from llmrl.limits import limits
from llmrl.types import Group, Score
from reward_models.judge import prompts, verdicts
from reward_models.judge.client import Cost, JudgeError, Messages, Question, ask_all, client_of
from reward_models.judge.judge import AS_OBJECT, REFERENCE, RUBRIC
from reward_models.judge.service import ServiceOptions

SYSTEM = (
    "You compare two responses, FIRST and SECOND, to the same question. What counts is this alone:\n{rubric}\n"
    "Their order is arbitrary, and length by itself is no merit."
)
ANSWERS = {
    "preference": '"first": a whole number from 0 (SECOND is clearly better) over 5 (equal) to 10 (FIRST is clearly better)',
    "winner": '"winner": "first", "second" or "tie"',
}
WINNERS = {"first": 1.0, "tie": 0.5, "second": 0.0}

Verdict = Literal["preference", "winner"]


class Duel(NamedTuple):
    """What two siblings' comparison gave: P(the former is better), whether the order decided, or the error."""

    p: float
    flipped: bool
    error: str | None = None


@limits(seconds=1800.0, workers=1, preload=("httpx",))
async def pairwise_judge(
    group: Group,
    *,
    service: ServiceOptions,
    rubric: str = RUBRIC,
    verdict: Verdict = "preference",
    opponents: int | None = None,
    use_reference: bool = True,
    max_chars: int = 16_000,
) -> list[Score]:
    """Each response's mean probability of being better than its siblings, in [0, 1], by a model that compares two.

    P(A better) = (P(first | A, B) + 1 - P(first | B, A)) / 2: two requests a pair, so that a preference for one place
    cancels. verdict: 'preference', 0 to 10, or 'winner', with ties at 1/2. opponents: siblings that each meets, an even
    number (2 is a ring); None: all. Equal texts are a tie and cost nothing. service, rubric, use_reference, max_chars:
    as for `judge`. A lone rollout has no value. A rollout of whose pairs one could not be compared has an error.
    """
    client = client_of(service)
    texts = [prompts.plain(rollout.text, max_chars) for rollout in group.rollouts]
    shown = {"QUESTION": prompts.question_text(group.prompt, max_chars)}
    if use_reference and group.prompt.reference is not None:
        shown["REFERENCE"] = prompts.reference_text(group.prompt.reference, max_chars)
    pairs = schedule(len(texts), opponents, group.prompt.id)
    unequal = [(i, j) for i, j in pairs if texts[i] != texts[j]]
    read = partial(read_preference, verdict)
    asked = [
        Question(f"pairwise/1 {verdict}", partial(messages, rubric, verdict, shown, texts[a], texts[b]), read)
        for i, j in unequal
        for a, b in ((i, j), (j, i))
    ]
    answers = await ask_all(client, asked)
    duels = dict.fromkeys(pairs, Duel(0.5, False))
    duels |= {pair: duel(answers[2 * n], answers[2 * n + 1]) for n, pair in enumerate(unequal)}
    cost = sum((answer[1] for answer in answers if not isinstance(answer, JudgeError)), Cost())
    common = {
        "pairs": len(pairs),
        "flipped": sum(d.flipped for d in duels.values()),
        "protocol": f"pairwise/1 {verdict}",
    }
    common |= {"model": client.service.model, "group_cost": asdict(cost)}
    return [score(place, duels, common) for place in range(len(texts))]


def schedule(size: int, opponents: int | None, salt: str) -> list[tuple[int, int]]:
    """Pairs of siblings, each in as many: neighbours at most `opponents` / 2 apart in a circle shuffled by `salt`.

    Raises RecipeError for an odd number of opponents.
    """
    if opponents is None or opponents >= size - 1:
        return [(i, j) for i in range(size) for j in range(i + 1, size)]
    if opponents < 2 or opponents % 2:
        raise RecipeError(
            f"pairwise_judge.opponents is {opponents}; expected an even number from 2 on, or null for all."
        )
    circle = list(range(size))
    random.Random(salt).shuffle(circle)
    steps = range(1, opponents // 2 + 1)
    return sorted({tuple(sorted((circle[i], circle[(i + k) % size]))) for i in range(size) for k in steps})


def messages(rubric: str, verdict: Verdict, shown: dict[str, str], first: str, second: str, nonce: str) -> Messages:
    """The conversation that asks for one comparison."""
    system = SYSTEM.format(rubric=rubric) + (f"\n{REFERENCE}" if "REFERENCE" in shown else "")
    last = AS_OBJECT.format(nonce=nonce, answer=ANSWERS[verdict])
    return prompts.conversation(system, shown | {"FIRST": first, "SECOND": second}, last, nonce)


def read_preference(verdict: Verdict, choice: dict[str, Any], nonce: str) -> dict[str, Any]:
    """{'p': P(first is better)} of the judge's answer. Raises Unreadable."""
    found = verdicts.json_object(choice["message"]["content"], nonce)
    if verdict == "winner":
        return {"p": WINNERS[verdicts.one_of(found, "winner", tuple(WINNERS))]}
    return {"p": verdicts.whole_number(found, "first", 10) / 10}


def duel(forward: Any, backward: Any) -> Duel:
    """Two comparisons of A and B, as (A, B) and as (B, A), made one."""
    if failed := next((one for one in (forward, backward) if isinstance(one, JudgeError)), None):
        return Duel(0.5, False, f"JudgeError: {failed}")
    ahead, behind = forward[0]["p"], backward[0]["p"]
    return Duel(debiased(ahead, behind), (ahead - 0.5) * (behind - 0.5) > 0)


def debiased(ahead: float, behind: float) -> float:
    """P(A better) out of P(first | A, B) and P(first | B, A)."""
    return (ahead + 1 - behind) / 2


def score(place: int, duels: dict[tuple[int, int], Duel], common: dict[str, Any]) -> Score:
    """What its duels say of one sibling."""
    own = {pair: one for pair, one in duels.items() if place in pair}
    if not own:
        return Score(None, evidence=common)
    if error := next((one.error for one in own.values() if one.error), None):
        return Score(None, evidence=common, error=error)
    value = sum(one.p if pair[0] == place else 1 - one.p for pair, one in own.items()) / len(own)
    flips = sum(one.flipped for one in own.values()) / len(own)
    feedback = f"A judge preferred the response to other ones {100 * value:.0f} % of the time."
    return Score(
        value, feedback=feedback, evidence={"win_rate": value, "opponents": len(own), "flip_rate": flips} | common
    )
