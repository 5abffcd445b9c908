"""The scorers of reasoning-gym's tasks, those that stood up to an audit."""

from __future__ import annotations

import contextlib
import functools
import io
import json
from typing import Any

from llmrl.data.reasoning_gym import audited, dataset, installed
from llmrl.limits import limits
from llmrl.types import Prompt, Rollout, Score
from reward_models.extraction import TAIL, in_answer_tag

LONGEST = 10_000  # characters of an answer
FULL = 1 - 1e-6
LIMITS = limits(seconds=10, memory_gb=4, confined=True, preload=("reasoning_gym",))


@LIMITS
def reasoning_gym(prompt: Prompt, rollout: Rollout, *, binary: bool = True) -> Score:
    """reasoning-gym's score of the last <answer>...</answer>: 1.0 if it is full, else 0.0.

    binary: off, the share that the task's own scorer gives; many give some to anything that contains the answer. Reads
    the column `reasoning_gym` of the source of that name. Runs behind Landlock and seccomp, as it is code of others. A
    scorer that fails on an answer while it takes the stored one gives 0. Raises DataError for a task that failed the
    audit, ValueError where the entry cannot be made again.
    """
    audited(entry_key(prompt)[0])
    return judged(prompt, rollout, binary)


@LIMITS
def unaudited(prompt: Prompt, rollout: Rollout, *, binary: bool = True) -> Score:
    """The same for any task: what the audit itself runs. Some of these scorers evaluate the answer as code."""
    return judged(prompt, rollout, binary)


def judged(prompt: Prompt, rollout: Rollout, binary: bool) -> Score:
    task, entry = entry_of(*entry_key(prompt))
    if entry["question"] not in prompt.question():
        raise ValueError("the prompt does not hold the question of its entry; was it made by another version?")
    read = in_answer_tag(rollout.text[-TAIL:])
    evidence = {"read": read and read[:200]}
    if read is None or not read.strip() or len(read) > LONGEST:
        said = "There is no answer between <answer> and </answer>."
        return Score(0.0, feedback=said, evidence=evidence)
    with contextlib.redirect_stdout(io.StringIO()):  # some print what they read
        try:
            share = float(task.score_answer(read.strip(), entry))
        except Exception as error:
            if float(task.score_answer(entry["answer"], entry)) < FULL:
                raise
            evidence["failed"] = f"{type(error).__name__}: {error}"[:200]
            share = 0.0
    value = float(share >= FULL) if binary else share
    return Score(value, feedback="The answer is " + ("right." if share >= FULL else "wrong."), evidence=evidence)


def entry_key(prompt: Prompt) -> tuple[str, int, int, str]:
    """Task, seed, index and options of the prompt's entry."""
    made: Any = prompt.columns.get("reasoning_gym")
    if not isinstance(made, dict) or {"task", "seed", "index", "config"} - set(made):
        raise ValueError(
            f"column reasoning_gym is {made!r:.80}; expected task, seed, index and config. Use that source."
        )
    return made["task"], made["seed"], made["index"], json.dumps(made["config"])


@functools.lru_cache(maxsize=256)
def entry_of(task: str, seed: int, index: int, config: str) -> tuple[Any, dict[str, Any]]:
    """The data set of an entry, and the entry."""
    installed()
    found = dataset(task, seed, index, config)
    return found, found[index]
