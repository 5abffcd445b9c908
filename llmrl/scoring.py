"""Scorers: naming them, running them in the pool, and keeping a failure from ever reading as a zero."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llmrl import catalog
from llmrl.calls import WHOLE_STEP, is_async, shape_of, singles
from llmrl.config import Named, Scoring
from llmrl.errors import RecipeError, ScoringError, nearest
from llmrl.limits import DEFAULT, Limits
from llmrl.options import typed
from llmrl.pool import Pool
from llmrl.pool.round import Call, Round, Source
from llmrl.types import Group, Score

LATE = "no answer within"
SPLITS_OF_LATE_CALLS = (
    4  # a call for many rollouts that was late is split so often; a function that hangs costs no more
)


@dataclass(frozen=True)
class Scorer:
    """A judge of rollouts.

    shape: how it is called (`llmrl.calls.shape_of`). source: how the pool's processes get it.
    """

    name: str
    shape: str
    source: Source
    limits: Limits = DEFAULT
    together: bool = False
    weight: float = 1.0

    @property
    def key(self) -> str:
        """Its name in the pool's processes: the same function with other options is another."""
        what = repr((self.source.path, self.source.code, sorted(self.source.options.items())))
        return f"{self.name}:{hashlib.blake2b(what.encode(), digest_size=8).hexdigest()}"

    @property
    def preload(self) -> list[str]:
        """Modules to import before processes are forked."""
        own = [self.source.path.partition(":")[0]] if self.source.path else []
        return [*own, *self.limits.preload]


@dataclass(frozen=True)
class Piece:
    """What one call judges: rollouts by (group, which of its rollouts)."""

    scorer: Scorer
    units: tuple[tuple[int, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Faults:
    """Rollouts, those that could not be judged, and each error as (scorer, prompt id, reason)."""

    rollouts: int
    failed: int
    errors: list[tuple[str, str, str]] = field(default_factory=list)


def make_scorer(named: Named) -> Scorer:
    """The scorer that a recipe names: 'math_answer' or {name: format_tags, weight: 0.2, <options>}.

    Raises CatalogError for an unknown name, RecipeError for wrong options or for a signature of no known shape.
    """
    options = dict(named) if isinstance(named, dict) else {"name": named}
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise RecipeError(f"scorers: {named!r} has no name. Expected a scorer's name or {{name: ..., <option>: ...}}.")
    weight = options.pop("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise RecipeError(f"scorers.{name}.weight is {weight!r}; expected a number.")
    function = catalog.get("scorers", name)
    shape, where = shape_of(function, name), f"scorers.{name}"
    declared = catalog.options_of(function)
    known = [*declared, "weight"]
    values, problems = {}, []
    for key, value in options.items():
        if key not in declared:
            hint = f"{nearest(key, known)} Options: {', '.join(known)}."
            problems.append(f"{where}.{key} is not an option of {name}.{hint}")
            continue
        values[key], wrong = typed(declared[key].annotation, value, f"{where}.{key}")
        problems += wrong
    if shape != "columns":  # there a keyword without a default asks for a column
        required = [key for key, p in declared.items() if p.default is p.empty and key not in options]
        problems += [f"{where}.{key} is missing: {name} has no default for it." for key in required]
    if problems:
        raise RecipeError(problems)
    path = catalog.table("scorers").get(name, name)
    return scorer(name.rpartition(":")[2], function, Source(path, b"", values), float(weight))


def scorer(name: str, function: Callable[..., Any], source: Source, weight: float = 1.0) -> Scorer:
    """The Scorer of a function, with what the function itself says of its limits."""
    own = getattr(catalog.unwrap(function), "limits", DEFAULT)
    return Scorer(name, shape_of(function, name), source, own, is_async(function), weight)


def from_function(function: Callable[..., Any]) -> Scorer:
    """The scorer that a Python function is, under its own name. Raises RecipeError for one that cannot be sent."""
    name = getattr(function, "__name__", None) or type(function).__name__
    return scorer(name, function, source_of(function, name))


def source_of(function: Callable[..., Any], name: str) -> Source:
    """By 'module:attribute' where that is this very function, else written out by dill."""
    module, attribute = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if module in sys.modules and module != "__main__" and "<" not in attribute:
        found = importlib.import_module(module)
        for step in attribute.split("."):
            found = getattr(found, step, None)
        if found is function:
            return Source(f"{module}:{attribute}", b"", {})
    import dill

    try:
        return Source("", dill.dumps(function, recurse=True), {})
    except Exception as error:
        raise RecipeError(
            f"scorer {name} cannot be sent to the processes that scorers run in ({type(error).__name__}: {error!s:.200}). "
            "Define it at the top of a module, or name it module:function."
        ) from error


def make_scorers(named: Iterable[Named]) -> list[Scorer]:
    """`make_scorer` for each. RecipeError when two share a name."""
    return distinct([make_scorer(one) for one in named])


def distinct(scorers: list[Scorer]) -> list[Scorer]:
    """The scorers. RecipeError when two share a name: scores are kept, logged and combined by name."""
    for name, times in Counter(one.name for one in scorers).items():
        if times > 1:
            raise RecipeError(f"scorers: {name} is named {times} times; expected once. Join them in one scorer.")
    return scorers


class Judging:
    """The scores of groups that may come one by one, while others are still being written.

    What a scorer can say of one group alone is begun with `look`; scorers that are called with the whole step wait for
    `finish`. The scores are the same in whatever order the groups come. breathe: called while `finish` waits; what it
    raises ends the wait.
    """

    def __init__(
        self, scorers: Sequence[Scorer], config: Scoring, pool: Pool, breathe: Callable[[], None] = lambda: None
    ):
        self.scorers, self.config = scorers, config
        self.groups: dict[int, Group] = {}
        self.asked: list[Piece] = []
        pool.start([module for one in scorers for module in one.preload])
        self.round = Round(pool, breathe)

    def add(self, groups: Mapping[int, Group]) -> None:
        """Further groups, by their place in the step; often none."""
        if groups:
            self.groups |= groups
            self.ask(p for one in self.scorers if one.shape not in WHOLE_STEP for p in pieces(one, groups))

    def look(self) -> None:
        """Let the pool's processes work on; waits for none of them."""
        self.round.look()

    def finish(self, gather: Callable[[Faults], Sequence[Faults]] = lambda found: [found]) -> list[Group]:
        """All groups in order, with `scores` filled in; see `score`."""
        scored = self.scored()
        refuse(gather(faults(scored)), self.config)
        return scored

    def scored(self) -> list[Group]:
        """What `finish` gives, however many errors are among the scores: `refuse` is for the caller."""
        self.ask(p for one in self.scorers if one.shape in WHOLE_STEP for p in pieces(one, self.groups))
        found = self.judged()
        if self.config.on_error == "retry":
            failed = {(name, place) for place, scores in found.items() for name, one in scores.items() if one.error}
            every = [piece for one in self.scorers for piece in pieces(one, self.groups)]
            self.ask(piece for piece in every if any((piece.scorer.name, at) in failed for at in places(piece)))
            for place, scores in self.judged().items():
                found[place] |= {name: one for name, one in scores.items() if (name, place) in failed}
        names = [one.name for one in self.scorers]
        return [
            replace(group, scores=tuple({n: found[g, r][n] for n in names} for r in range(len(group.rollouts))))
            for g, group in sorted(self.groups.items())
        ]

    def ask(self, work: Iterable[Piece]) -> None:
        """Queue the calls."""
        work = list(work)
        self.asked += work
        self.round.add([call(piece, self.groups, self.config) for piece in work])

    def judged(self) -> dict[tuple[int, int], dict[str, Score]]:
        """Every asked place's scores by scorer; failed calls of several units are split in two until the fault stands
        alone.
        """
        found: dict[tuple[int, int], dict[str, Score]] = {}
        late: Counter[str] = Counter()
        while self.asked:
            asked, self.asked = self.asked, []
            for piece, outcome in zip(asked, self.round.finish(), strict=True):
                name = piece.scorer.name
                if isinstance(outcome, str):
                    late[name] += outcome.startswith(LATE)
                    if len(piece.units) > 1 and late[name] <= SPLITS_OF_LATE_CALLS:
                        middle = len(piece.units) // 2
                        self.ask(replace(piece, units=half) for half in (piece.units[:middle], piece.units[middle:]))
                        continue
                    outcome = [Score(None, error=outcome)] * len(places(piece))
                for place, given in zip(places(piece), outcome, strict=True):
                    found.setdefault(place, {})[name] = given
        return found


def score(
    groups: Sequence[Group],
    scorers: Sequence[Scorer],
    config: Scoring,
    pool: Pool,
    gather: Callable[[Faults], Sequence[Faults]] = lambda found: [found],
) -> list[Group]:
    """The groups with `scores` filled in: for each rollout, every scorer's Score by name.

    What a scorer raises, a value that is not a finite number, a wrong count, an answer later than `config.timeout`
    seconds and the end of the scorer's process become a Score with an error. 'retry' asks once more. A call that
    answers for many rollouts and fails is split, so that only those pay that have to. Raises ScoringError for any error
    under 'fail', or for more rollouts with errors than `config.max_error_share`; `gather` brings in the faults of the
    other processes of the run.
    """
    judging = Judging(scorers, config, pool)
    judging.add(dict(enumerate(groups)))
    return judging.finish(gather)


def pieces(one: Scorer, groups: Mapping[int, Group]) -> list[Piece]:
    """The calls that it takes to judge every rollout once."""
    units = [(g, rollouts) for g, group in sorted(groups.items()) for rollouts in singles(group, one.shape)]
    if one.shape in WHOLE_STEP:
        return [Piece(one, tuple(units))] if units else []
    return [Piece(one, (unit,)) for unit in units]


def places(piece: Piece) -> list[tuple[int, int]]:
    return [(g, r) for g, rollouts in piece.units for r in rollouts]


def call(piece: Piece, groups: Mapping[int, Group], config: Scoring) -> Call:
    """The piece as the pool takes it: rollouts of one group together."""
    grouped: dict[int, list[int]] = {}
    for g, rollouts in piece.units:
        grouped.setdefault(g, []).extend(rollouts)
    one = piece.scorer
    return Call(
        key=one.key,
        source=one.source,
        shape=one.shape,
        limits=one.limits,
        seconds=one.limits.seconds or config.timeout,
        groups=tuple((groups[g].prompt, tuple(groups[g].rollouts[r] for r in rs)) for g, rs in grouped.items()),
        together=one.together,
    )


def usable(scores: dict[str, Score]) -> bool:
    """Whether a rollout can be trained on: no scorer failed and, where there are scorers, one of them gave a value."""
    if any(one.error is not None for one in scores.values()):
        return False
    return not scores or any(one.value is not None for one in scores.values())


def faults(groups: Sequence[Group]) -> Faults:
    """The errors among scored rollouts."""
    rows = [(group.prompt.id, scores) for group in groups for scores in group.scores]
    errors = [(name, prompt, one.error) for prompt, scores in rows for name, one in scores.items() if one.error]
    return Faults(len(rows), sum(any(one.error for one in scores.values()) for _, scores in rows), errors)


def refuse(found: Sequence[Faults], config: Scoring) -> None:
    """Raise ScoringError where the errors of all processes are more than the recipe tolerates."""
    reason = excessive(found, config)
    if reason is not None:
        raise ScoringError(reason)


def excessive(found: Sequence[Faults], config: Scoring) -> str | None:
    """Why the errors of all processes are more than the recipe tolerates; None where they are not."""
    errors = [error for one in found for error in one.errors]
    if errors and config.on_error == "fail":
        name, prompt, reason = errors[0]
        return f"scorer {name} failed on prompt {prompt}: {reason.rstrip('.')}. Mend the scorer, or set scoring.on_error to drop."
    rollouts, failed = sum(one.rollouts for one in found), sum(one.failed for one in found)
    if failed > config.max_error_share * rollouts:
        (name, reason), times = Counter((name, reason) for name, _, reason in errors).most_common(1)[0]
        return (
            f"{failed} of {rollouts} rollouts could not be scored; scoring.max_error_share allows "
            f"{config.max_error_share:g}. Most often ({times} times) scorer {name}: {reason.rstrip('.')}. Mend the scorer."
        )
    return None
