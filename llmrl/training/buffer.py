"""Scored rollouts of the steps that no checkpoint holds yet, so that a resumed run trains on the same ones.

What an engine sampled or a judge said may not come out the same again, and took most of the step's time.

buffer/<stage>-<step>-<attempt>.jsonl    a line that says whose they are, then one line a prompt
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmrl.durable import write
from llmrl.redaction import exact
from llmrl.tracking.log import Log
from llmrl.training.ranks import Ranks
from llmrl.types import Completion, Group, Prompt, Rollout, Score

FORMAT = 1


class Buffer:
    """The rollouts of one stage's steps in a run's folder.

    owner: plain data that says whose they are; what another recipe or stage has written is never read.
    """

    def __init__(self, folder: Path, stage: int, owner: dict[str, Any], ranks: Ranks, log: Log):
        self.folder, self.stage, self.owner, self.ranks, self.log = folder / "buffer", stage, owner, ranks, log

    def read(
        self, number: int, attempt: int, version: int, first: int, prompts: Sequence[Prompt]
    ) -> list[Group] | None:
        """The groups of these prompts, if they were sampled for this step before. first: number of the first among those of
        all processes. None where they were not, or are not as they were written.
        """
        found = self._groups(number, attempt, version) if self.ranks.main else None
        mine = None
        for groups in self.ranks.gather(found)[:1]:
            mine = groups and groups[first : first + len(prompts)]
        same = mine is not None and [g["prompt"] for g in mine] == [p.id for p in prompts]
        if not all(self.ranks.gather(same)):
            return None
        return [group_of(p, g) for p, g in zip(prompts, mine, strict=True)]

    def write(self, number: int, attempt: int, version: int, groups: Sequence[Group]) -> None:
        """Keep the groups of this step, and none of later ones: those were sampled by weights that are not made again."""
        everyone = [g for part in self.ranks.gather(list(groups)) for g in part]
        if not self.ranks.main:
            return
        place = (self.stage, number, attempt)
        self._forget(lambda other: other > place)
        body = exact("".join(f"{json.dumps(plain(g))}\n" for g in everyone))
        header = self._header(number, attempt, version) | {"sha256": hashlib.sha256(body.encode()).hexdigest()}
        contents = f"{json.dumps(header)}\n{body}".encode()
        self.log.attempt("buffer", lambda: write(self._path(number, attempt), contents), "a kill costs its rollouts")

    def forget(self, step: int) -> None:
        """Remove what belongs to the first `step` steps of the stage: a checkpoint holds what they made."""
        self._forget(lambda other: other < (self.stage, step, 0))

    def _forget(self, gone: Callable[[tuple[int, ...]], bool]) -> None:
        for path in self.folder.glob("*-*-*.jsonl"):
            if gone(tuple(map(int, path.stem.split("-")))):
                path.unlink()
        with contextlib.suppress(OSError):  # others are left, or there never was one
            self.folder.rmdir()

    def _groups(self, number: int, attempt: int, version: int) -> list[dict[str, Any]] | None:
        path = self._path(number, attempt)
        if not path.exists():
            return None
        try:
            head, _, body = path.read_text().partition("\n")
            wanted = self._header(number, attempt, version) | {"sha256": hashlib.sha256(body.encode()).hexdigest()}
            if json.loads(head) == wanted:
                return [json.loads(line) for line in body.splitlines()]
            problem = "its contents are not those that were written, or belong to another run"
        except (OSError, ValueError) as error:
            problem = str(error)
        self.log.say(f"{path.name}: {problem}; step {number + 1} is sampled again")
        return None

    def _path(self, number: int, attempt: int) -> Path:
        return self.folder / f"{self.stage}-{number}-{attempt}.jsonl"

    def _header(self, number: int, attempt: int, version: int) -> dict[str, Any]:
        return {"format": FORMAT, "step": number, "attempt": attempt, "version": version} | self.owner


def plain(group: Group) -> dict[str, Any]:
    """A scored group as JSON can hold it; of the prompt its id alone."""
    rollouts = [vars(r) | {"stored": r.stored and asdict(r.stored)} for r in group.rollouts]
    return {
        "prompt": group.prompt.id,
        "rollouts": rollouts,
        "scores": [{name: vars(score) for name, score in scores.items()} for scores in group.scores],
    }


def group_of(prompt: Prompt, record: dict[str, Any]) -> Group:
    """What `plain` has written."""
    rollouts = tuple(Rollout(**hashable(r) | {"stored": completion_of(r["stored"])}) for r in record["rollouts"])
    scores = ({n: Score(**s | {"steps": nested(s["steps"])}) for n, s in row.items()} for row in record["scores"])
    return Group(prompt, rollouts, tuple(scores))


def completion_of(fields: dict[str, Any] | None) -> Completion | None:
    if fields is None:
        return None
    messages = fields["messages"] and tuple(fields["messages"])
    return Completion(**fields | {"messages": messages, "steps": nested(fields["steps"])})


def hashable(fields: dict[str, Any]) -> dict[str, Any]:
    return {k: nested(v) if isinstance(v, list) else v for k, v in fields.items()}


def nested(rows: list) -> tuple:
    """Lists inside lists as tuples."""
    return tuple(tuple(row) if isinstance(row, list) else row for row in rows)
