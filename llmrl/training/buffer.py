"""Scored rollouts of the steps that no checkpoint holds yet, so that a resumed run trains on the same ones.

What an engine sampled or a judge said may not come out the same again, and took most of the step's time.

buffer/<stage>-<step>-<attempt>.jsonl    a line that says whose they are, then one line a prompt
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmrl.durable import write
from llmrl.redaction import exact
from llmrl.tracking.log import Log
from llmrl.training.ranks import Ranks
from llmrl.types import Completion, Group, Prompt, Rollout, Score

FORMAT = 1


@dataclass(frozen=True)
class Dealt:
    """This process's share of the prompts of a step, to be answered.

    attempt: from 1; more where a step asks for further prompts. drawn: which batch of the data they are. version: of the
    weights that answer them. places: the prompts' numbers among those of all processes.
    """

    number: int
    attempt: int
    drawn: int
    version: int
    prompts: Sequence[Prompt]
    places: Sequence[int]

    @property
    def first(self) -> int:
        """The number of the first prompt; 0 for a process without one."""
        return self.places[0] if self.places else 0


class Buffer:
    """The rollouts of one stage's steps in a run's folder.

    owner: plain data that says whose they are; what another recipe or stage has written is never read. ahead: whether later
    steps may be answered before earlier ones are trained on.
    """

    def __init__(self, folder: Path, stage: int, owner: dict[str, Any], ranks: Ranks, log: Log, ahead: bool = False):
        self.folder, self.stage, self.owner, self.ranks, self.log = folder / "buffer", stage, owner, ranks, log
        self.ahead = ahead

    def read(self, dealt: Dealt) -> list[Group] | None:
        """The groups of these prompts, if they were sampled for this step by these weights before. None where they were
        not, or are not as they were written.
        """
        found = self._groups(dealt) if self.ranks.main else None
        mine = None
        for groups in self.ranks.gather(found)[:1]:
            mine = groups and groups[dealt.first : dealt.first + len(dealt.prompts)]
        same = mine is not None and [g["prompt"] for g in mine] == [p.id for p in dealt.prompts]
        if not all(self.ranks.gather(same)):
            return None
        return [group_of(p, g) for p, g in zip(dealt.prompts, mine, strict=True)]

    def write(self, dealt: Dealt, groups: Sequence[Group]) -> None:
        """Keep the groups of this step, and none of later ones but those that a run ahead has from weights no newer: weights
        that are made after this step are not made again.
        """
        everyone = [g for part in self.ranks.gather(list(groups)) for g in part]
        if not self.ranks.main:
            return
        place = (self.stage, dealt.number, dealt.attempt)
        for path in self._paths(lambda other: other > place):
            later = self.ahead and path.name.startswith(f"{self.stage}-") and f"-{dealt.number}-" not in path.name
            if not (later and written_by(path) <= dealt.version):
                path.unlink()
        body = exact("".join(f"{json.dumps(plain(g))}\n" for g in everyone))
        header = self._header(dealt) | {"sha256": hashlib.sha256(body.encode()).hexdigest()}
        contents = f"{json.dumps(header)}\n{body}".encode()
        self.log.attempt("buffer", lambda: write(self._path(dealt), contents), "a kill costs its rollouts")

    def forget(self, step: int) -> None:
        """Remove what belongs to the first `step` steps of the stage: a checkpoint holds what they made."""
        for path in self._paths(lambda other: other < (self.stage, step, 0)):
            path.unlink()
        with contextlib.suppress(OSError):  # others are left, or there never was one
            self.folder.rmdir()

    def _paths(self, chosen: Callable[[tuple[int, ...]], bool]) -> list[Path]:
        """The files whose (stage, step, attempt) is chosen."""
        return [p for p in self.folder.glob("*-*-*.jsonl") if chosen(tuple(map(int, p.stem.split("-"))))]

    def _groups(self, dealt: Dealt) -> list[dict[str, Any]] | None:
        path = self._path(dealt)
        if not path.exists():
            return None
        try:
            head, _, body = path.read_text().partition("\n")
            wanted = self._header(dealt) | {"sha256": hashlib.sha256(body.encode()).hexdigest()}
            if json.loads(head) == wanted:
                return [json.loads(line) for line in body.splitlines()]
            problem = "its contents are not those that were written, or belong to another run"
        except (OSError, ValueError) as error:
            problem = str(error)
        self.log.say(f"{path.name}: {problem}; step {dealt.number + 1} is sampled again")
        return None

    def _path(self, dealt: Dealt) -> Path:
        return self.folder / f"{self.stage}-{dealt.number}-{dealt.attempt}.jsonl"

    def _header(self, dealt: Dealt) -> dict[str, Any]:
        place = {"step": dealt.number, "attempt": dealt.attempt, "version": dealt.version}
        return {"format": FORMAT} | place | self.owner


def written_by(path: Path) -> float:
    """The version of the weights that a file names; infinite where it names none."""
    try:
        with path.open() as file:
            return float(json.loads(file.readline())["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return float("inf")


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
