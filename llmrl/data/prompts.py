"""The prompts of a run: read, converted, rendered, checked for length, and dealt out in batches."""

from __future__ import annotations

import functools
import hashlib
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from llmrl.config import Data
from llmrl.data.formats import to_prompt
from llmrl.data.read import Row, read_rows
from llmrl.data.render import render, render_completion
from llmrl.data.steps import laid_on_written
from llmrl.errors import DataError
from llmrl.types import Prompt


@dataclass(frozen=True)
class LoadReport:
    """What became of the rows. longest: tokens of the longest prompt kept. reasons: one a bad row."""

    rows: int
    kept: int
    too_long: int
    bad: int
    longest: int
    reasons: tuple[str, ...] = ()

    def __str__(self) -> str:
        return (
            f"{self.rows:,} rows: {self.kept:,} prompts kept, {self.too_long:,} refused as too long, {self.bad:,} "
            f"unusable; the longest kept has {self.longest:,} tokens"
        )


@dataclass(frozen=True)
class PromptSet:
    """Prompts in the data's order, each with its `ids`; no two share an `id`."""

    prompts: list[Prompt]
    report: LoadReport
    shuffle: bool = True

    def __len__(self) -> int:
        return len(self.prompts)

    @functools.cached_property
    def digest(self) -> str:
        """Hash of every prompt's id in order, that is of the rows they were made from."""
        return hashlib.sha256("\n".join(prompt.id for prompt in self.prompts).encode()).hexdigest()

    def batch(self, step: int, size: int, *, seed: int) -> list[Prompt]:
        """The `size` prompts of a step, from 0: positions step·size to (step + 1)·size of the epochs laid end to end.

        Depends on nothing but the arguments, so a resumed run goes on with the right prompts. An epoch is a permutation
        of all prompts drawn from (seed, epoch), or the data's order without shuffle. One prompt stands twice in a batch
        only where the batch runs over the end of an epoch.
        """
        places = (divmod(place, len(self)) for place in range(step * size, (step + 1) * size))
        if not self.shuffle:
            return [self.prompts[i] for _, i in places]
        return [self.prompts[permutation(len(self), seed, epoch)[i]] for epoch, i in places]


@functools.lru_cache(maxsize=4)
def permutation(size: int, seed: int, epoch: int) -> tuple[int, ...]:
    """0 to size - 1 in an order drawn from (seed, epoch)."""
    order = list(range(size))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return tuple(order)


def load(
    data: Data,
    tokenizer: Any,
    *,
    seed: int,
    answers: bool = False,
    adapt: Callable[[Row], Row | None] | None = None,
) -> PromptSet:
    """Every usable prompt of `data`, rendered. answers: stored answers are wanted, and a row without usable ones is bad.
    adapt: as in `read_rows`.

    Prompts longer than `data.max_prompt_tokens` are refused and counted, never cut. Rows that cannot be used are left
    out, with a reason each. The second of two equal rows gets the id of the first with '-2', and so on. Raises
    DataError when more than half of the rows are bad or nothing is left.
    """
    reasons: list[str] = []
    rows = read_rows(data, seed=seed, adapt=adapt, unreadable=reasons)
    total = len(rows) + len(reasons)
    prompts: list[Prompt] = []
    seen: Counter[str] = Counter()
    too_long: list[int] = []
    for number, row in enumerate(rows, 1):
        try:
            prompt = to_prompt(row, data, number)
            ids = _render(prompt, tokenizer, number, answers)
        except DataError as error:
            reasons.append(str(error))
            continue
        if len(ids) > data.max_prompt_tokens:
            too_long.append(len(ids))
            continue
        seen[prompt.id] += 1
        count = seen[prompt.id]
        prompts.append(replace(prompt, id=f"{prompt.id}-{count}" if count > 1 else prompt.id, ids=ids))
    longest = max((len(prompt.ids) for prompt in prompts), default=0)
    report = LoadReport(total, len(prompts), len(too_long), len(reasons), longest, tuple(reasons))
    if not prompts or 2 * len(reasons) > total:
        first = "".join(f"\n  {reason}" for reason in reasons[:3])
        raise DataError(
            f"{data.source}: {report} (data.max_prompt_tokens is {data.max_prompt_tokens}; the longest refused has "
            f"{max(too_long, default=0)}). At least half of the rows have to be usable, and one prompt left.{first}"
        )
    return PromptSet(prompts, report, data.shuffle)


def _render(prompt: Prompt, tokenizer: Any, number: int, answers: bool) -> tuple[int, ...]:
    try:
        if answers and not prompt.completions:
            raise DataError(
                "no stored answer to replay: expected a completion, or chosen and rejected answers. Map the "
                "column in data.columns."
            )
        rendered = replace(prompt, ids=render(prompt, tokenizer))
        for completion in prompt.completions if answers else ():
            ids = render_completion(rendered, completion, tokenizer)
            places = [place for place, _ in laid_on_written(rendered, completion, ids, tokenizer)]
            if len({*places}) < len(places):
                raise DataError("two steps end in one token. Use a data.step_tag that is a token of its own.")
        return rendered.ids
    except DataError as error:
        raise DataError(f"row {number}: {error}") from error
