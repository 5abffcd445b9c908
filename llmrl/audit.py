"""Can a scorer be fooled? It is given right answers, attacks and broken rows, and has to tell them apart."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from llmrl.attacks import ATTACKS, VARIANTS, Case, both_ways
from llmrl.scoring import LATE
from llmrl.types import Group, Prompt, Rollout, Score

HEAVY = ("long", "hostile")  # attacks that are tried on few prompts
FEW = 2
MOST_TOKENS = 20_000  # of a rollout; the text may be longer
CLOSE = 1e-6

Judge = Callable[[list[Group]], list[Group]]


@dataclass(frozen=True)
class Example:
    """What a scorer is audited on. skip: checks that say nothing about it, with the reason why; their responses are
    judged all the same, and must not raise.

    full: marks of a right answer. none: what an attack may get at most. options: of the scorer.
    """

    cases: Sequence[Case]
    skip: Mapping[str, str] = field(default_factory=dict)
    full: float = 1.0
    none: float = 0.0
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """One line of an audit. passed is None for what is only measured, or does not apply."""

    name: str
    about: str
    found: str
    passed: bool | None = None


@dataclass(frozen=True)
class Audit:
    """What an audit found. As text: a table with one line a check."""

    scorer: str
    num_cases: int
    checks: list[Check]

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if check.passed is False]

    def __str__(self) -> str:
        words = {True: "pass", False: "FAIL", None: "-"}
        rows = [(check.name, words[check.passed], check.about, check.found) for check in self.checks]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        verdict = f"{len(self.failed)} checks failed" if self.failed else "every check passed"
        return "\n".join([f"{self.scorer}, audited on {self.num_cases} prompts: {verdict}", *lines])


@dataclass(frozen=True)
class Item:
    """One response to be judged, and the check that it is for."""

    check: str
    place: int  # of its case
    text: str


def audit(scorer: str, example: Example, judge: Judge) -> Audit:
    """Every check of the scorer named, by `judge`, which fills in the groups' scores.

    The judge must turn failures into errors of the Score, never raise: `llmrl.scoring.score` with max_error_share 1.
    """
    cases = list(example.cases)
    ordinary = ordinary_items(cases)
    heavy = [
        Item(n, place, text) for n in HEAVY for place, one in enumerate(cases[:FEW]) for text in ATTACKS[n](one, cases)
    ]
    first = answers(scorer, cases, ordinary, judge)
    order = random.Random(0).sample(range(len(ordinary)), len(ordinary))
    started = time.perf_counter()
    again = answers(scorer, cases, [ordinary[i] for i in order], judge)
    seconds = time.perf_counter() - started
    changed = sum(differs(first[i], score) for i, score in zip(order, again, strict=True))
    rest = answers(scorer, cases, heavy, judge)
    found: dict[str, list[tuple[Item, Score]]] = {}
    for item, score in zip(ordinary + heavy, first + rest, strict=True):
        found.setdefault(item.check, []).append((item, score))
    everything = first + again + rest
    late = sum(is_late(score) for score in everything)
    errors = sum(score.error is not None for score in everything) - late
    total = f"of {len(everything):,}"
    reason = next((f": {s.error:.80}" for s in everything if s.error is not None), "")
    return Audit(
        scorer,
        len(cases),
        [
            oracle(example, found),
            *(attack(name, doc.__doc__, example, found) for name, doc in ATTACKS.items()),
            hedge(example, found),
            broken(scorer, example, judge),
            Check("exceptions", "errors that are no time-outs", f"{errors} {total}{reason}", errors == 0),
            Check("time-outs", "no answer within the limit", f"{late} {total}", late == 0),
            Check(
                "determinism", "the same twice, in another order", f"{changed} of {len(first):,} differ", changed == 0
            ),
            Check("speed", "ordinary answers, second time", f"{len(ordinary) / seconds:,.0f} answers/s"),
            *variants(example, found),
        ],
    )


def ordinary_items(cases: Sequence[Case]) -> list[Item]:
    """Every response that all prompts are tried with."""
    attacks = {name: make for name, make in ATTACKS.items() if name not in HEAVY}
    made = []
    for place, case in enumerate(cases):
        made.append(Item("oracle", place, case.response(case.answer)))
        made += [Item(name, place, text) for name, make in attacks.items() for text in make(case, cases)]
        made += [Item("both_answers", place, text) for text in both_ways(case)]
        made += [Item(name, place, make(case)) for name, make in VARIANTS.items()]
    return made


def answers(scorer: str, cases: Sequence[Case], items: Sequence[Item], judge: Judge) -> list[Score]:
    """The scorer's Score of each item, every one a group of its own."""
    asked = [Group(cases[item.place].prompt, (rollout_of(cases[item.place], item.text),)) for item in items]
    return [group.scores[0][scorer] for group in judge(asked)] if asked else []


def rollout_of(case: Case, text: str) -> Rollout:
    """A rollout with one token a byte, up to as many as a long one has."""
    return Rollout(tuple(text[:MOST_TOKENS].encode("utf-8", "surrogatepass")[:MOST_TOKENS]), text, stored=case.stored)


def marks(example: Example, score: Score) -> bool:
    """Whether it got more than an attack may."""
    return score.value is not None and score.value > example.none + CLOSE


def oracle(example: Example, found: Mapping[str, list[tuple[Item, Score]]]) -> Check:
    about = "right answers get full marks"
    if "oracle" in example.skip:
        return Check("oracle", about, example.skip["oracle"])
    share = fmean(score.value is not None and score.value >= example.full - CLOSE for _, score in found["oracle"])
    return Check("oracle", about, f"{share:.1%}", share == 1)


def attack(name: str, about: str, example: Example, found: Mapping[str, list[tuple[Item, Score]]]) -> Check:
    """The share of an attack's responses that got marks, with one that did."""
    if name in example.skip or not found.get(name):
        return Check(name, about, example.skip.get(name, "no such response for these prompts"))
    fooled = [item.text for item, score in found[name] if marks(example, score)]
    shown = f", such as {fooled[0]!r:.60}" if fooled else ""
    return Check(name, about, f"{len(fooled) / len(found[name]):.1%}{shown}", not fooled)


def hedge(example: Example, found: Mapping[str, list[tuple[Item, Score]]]) -> Check:
    about = "right then wrong and wrong then right, both with marks"
    if "both_answers" in example.skip:
        return Check("both_answers", about, example.skip["both_answers"])
    got = [marks(example, score) for _, score in found["both_answers"]]
    share = fmean(a and b for a, b in zip(got[::2], got[1::2], strict=True))
    return Check("both_answers", about, f"{share:.1%}", share == 0)


def broken(scorer: str, example: Example, judge: Judge) -> Check:
    """Rows without what the scorer compares with must not come out as a judgement."""
    about = "rows without reference and columns get no value"
    if "broken_rows" in example.skip:
        return Check("broken_rows", about, example.skip["broken_rows"])
    some = [replace(case, prompt=bare(case.prompt)) for case in example.cases[:FEW]]
    scores = answers(scorer, some, [Item("", place, one.response(one.answer)) for place, one in enumerate(some)], judge)
    judged = sum(score.value is not None for score in scores)
    return Check("broken_rows", about, f"{judged} of {len(scores)} judged", judged == 0)


def bare(prompt: Prompt) -> Prompt:
    return replace(prompt, reference=None, columns={})


def variants(example: Example, found: Mapping[str, list[tuple[Item, Score]]]) -> list[Check]:
    """How the right answer fares in another dress: no verdict, strictness is a choice."""
    checks = []
    for name in VARIANTS:
        if found.get(name):
            share = fmean(score.value is not None and score.value >= example.full - CLOSE for _, score in found[name])
            checks.append(Check(name, "right answers that get full marks", f"{share:.1%}"))
    return checks


def is_late(score: Score) -> bool:
    return score.error is not None and score.error.startswith(LATE)


def differs(one: Score, other: Score) -> bool:
    """Whether two judgements of the same response disagree; errors are counted elsewhere."""
    return one.error is None and other.error is None and (one.value, one.feedback) != (other.value, other.feedback)
