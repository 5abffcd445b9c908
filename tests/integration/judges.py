"""Scorers of whole runs. Nothing heavy is imported, so that the pool's processes start at once."""

import os
import time


def varied(completion_ids, **columns) -> list[float]:
    """Spreads within almost any group of different answers."""
    return [float(sum(ids) % 7) for ids in completion_ids]


def reachable(completion_ids, **columns) -> list[float]:
    """`varied`, unless there is a file of the name in JUDGE_DOWN; slow where there is one of the name in JUDGE_SLOW."""
    if os.path.exists(os.environ["JUDGE_DOWN"]):
        raise OSError("the judge is down")
    if os.path.exists(os.environ.get("JUDGE_SLOW", "")):
        time.sleep(60)
    return varied(completion_ids)


def coin(completion_ids, **columns) -> list[float]:
    """1 or 0 by the answer's tokens; both come about evenly."""
    return [float(sum(ids) % 2) for ids in completion_ids]


def graded(completion_ids, **columns) -> list[float]:
    """`varied`, between 0 and 1."""
    return [float(sum(ids) % 7) / 7 for ids in completion_ids]


def seldom(completion_ids, **columns) -> list[float]:
    """1 for about one answer in thirteen: most groups have the same for all."""
    return [float(sum(ids) % 13 == 0) for ids in completion_ids]


def kind_of(prompt) -> int:
    """0, 1 or 2 by the prompt's text."""
    return sum(map(ord, str(prompt))) % 3


def by_prompt(prompts, completion_ids, **columns) -> list[float]:
    """Prompts whose answers are all right (kind 0), all wrong (kind 1), and a coin's throw."""
    tossed = coin(completion_ids)
    return [(1.0, 0.0, toss)[kind_of(p)] for p, toss in zip(prompts, tossed, strict=True)]


def flat(completion_ids, **columns) -> list[float]:
    """The same for all."""
    return [1.0] * len(completion_ids)


def moody(prompts, completion_ids, **columns) -> list[float | None]:
    """No verdict on the prompts of kind 0."""
    return [None if kind_of(p) == 0 else v for p, v in zip(prompts, varied(completion_ids), strict=True)]


def unsure(prompts, completion_ids, **columns) -> list[float | None]:
    """No verdict on a third of the answers, the same answer to another prompt among them."""
    values = zip(prompts, completion_ids, varied(completion_ids), strict=True)
    return [None if (kind_of(p) + sum(ids)) % 3 == 0 else v for p, ids, v in values]


def told(prompt, rollout):
    """A coin's throw by the answer's tokens, in words too."""
    from llmrl.types import Score

    right = sum(rollout.ids) % 2 == 1
    return Score(float(right), "The answer is right." if right else "The answer is wrong.")
