"""Step labels without annotators: from every prefix of a solution some completions are sampled and judged.

    python -m reward_models.process_labels MODEL DATA OUT [key=value ...]

What it writes is step data: `llmrl train prm data.source=OUT`.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from llmrl.config import Data, Model, Named, Positive, Scoring, Section
from llmrl.data.prompts import load
from llmrl.data.render import render_completion
from llmrl.data.steps import laid_on_sampled
from llmrl.errors import DataError, LlmrlError
from llmrl.evaluation import RIGHT, seed_of
from llmrl.pool import Pool
from llmrl.rollout.engine import Engine
from llmrl.scoring import Scorer, make_scorer, score
from llmrl.types import Group, Prompt, Rollout, Sampling
from reward_models.process_reward import steps_of

TOGETHER = 32  # solutions whose completions are sampled in one call
Kind = Literal["hard", "soft", "entropy_regularised"]


class Labelling(Section):
    """How labels are made; the keys of the command.

    Solutions are the data's stored answers, or else `num_solutions` sampled ones a prompt. Each step but the last gets
    `num_completions` from its prefix on; `scorer` says which end right.
    """

    scorer: Named = "math_answer"
    kind: Kind = "entropy_regularised"
    eta: float = 1.0
    num_solutions: Positive = 1
    num_completions: Positive = 8
    max_tokens: Positive = 512
    separator: str = "\n"
    seed: int = 0


@dataclass(frozen=True)
class Solution:
    """An answer to be labelled, and its number among those of the prompt. ids: its tokens."""

    prompt: Prompt
    number: int
    text: str
    ids: tuple[int, ...]

    @property
    def id(self) -> str:
        return f"{self.prompt.id}/{self.number}"


def label(outcomes: Sequence[float], kind: Kind = "entropy_regularised", eta: float = 1.0) -> float:
    """What the outcomes y of completions from a prefix say of it: 'hard' the best, 'soft' the mean, or between them

    'entropy_regularised': (1/eta) log mean exp(eta y) (arXiv:2412.11006, eq. 8), which is (1/eta) log((1-p) + p e^eta)
    for a share p of right ones; eta → 0 gives the mean, eta < 0 less. Raises ValueError without outcomes.
    """
    if not outcomes:
        raise ValueError("no outcomes; expected at least one")
    if kind == "hard":
        return float(max(outcomes))
    mean = math.fsum(outcomes) / len(outcomes)
    if kind == "soft" or eta == 0:
        return mean
    largest = max(eta * y for y in outcomes)
    return (largest + math.log(math.fsum(math.exp(eta * y - largest) for y in outcomes) / len(outcomes))) / eta


def write_labels(model: Model, data: Data, out: Path, how: Labelling, engine: Named = "transformers") -> dict[str, int]:
    """Label solutions to every prompt of `data` and append them to `out`, one JSON row each; counts of what was done.

    Rows: prompt, steps, labels, and in `outcomes` what the labels of all steps but the last were made of. The same call
    again goes on after the last whole row. Solutions without a step, and those with a step of which no completion could
    be judged, are left out and counted. Raises DataError when `out` was made in another way.
    """
    from llmrl.policy.load import load_policy
    from llmrl.run import make_engine

    done = resume(
        out, json.loads(how.model_dump_json()) | {"model": model.path or str(model.make), "data": str(data.source)}
    )
    policy = load_policy(model, out.parent, seed=how.seed)
    policy.module.requires_grad_(False)
    policy.module.to("cuda" if torch.cuda.is_available() else "cpu")
    prompts, scorer = load(data, policy.tokenizer, seed=how.seed), make_scorer(how.scorer)
    longest = prompts.report.longest
    sampler = make_engine(engine, policy, (longest + how.max_tokens, how.max_tokens))
    counts: Counter[str] = Counter({"labelled": 0, "before": len(done), "left_out": 0})
    try:
        sampler.sync(policy, 0)
        with Pool() as pool, out.open("a") as file:
            every = (s for prompt in prompts.prompts for s in solutions(prompt, sampler, policy.tokenizer, how))
            todo = (solution for solution in every if solution.id not in done)
            while some := list(itertools.islice(todo, TOGETHER)):
                rows = labelled(some, sampler, policy.tokenizer, scorer, how, pool)
                counts.update(labelled=len(rows), left_out=len(some) - len(rows))
                file.write("".join(json.dumps(row) + "\n" for row in rows))
                file.flush()
    finally:
        sampler.close()
    return dict(counts)


def resume(out: Path, settings: dict[str, Any]) -> set[str]:
    """Ids of the solutions in `out`, after a row that was cut is taken off. DataError where its settings are others."""
    beside = out.with_name(f"{out.name}.settings.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    if not out.exists():
        beside.write_text(json.dumps(settings, indent=1))
        return set()
    kept = json.loads(beside.read_text()) if beside.exists() else None
    if kept != settings:
        differ = sorted(k for k in settings if not kept or kept.get(k) != settings[k])
        raise DataError(f"{out} was written with other settings: {', '.join(differ)} differ. Name another file.")
    whole = out.read_bytes()
    end = whole.rfind(b"\n") + 1
    with out.open("r+b") as file:
        file.truncate(end)
    return {json.loads(line)["id"] for line in whole[:end].splitlines()}


def solutions(prompt: Prompt, engine: Engine, tokenizer: Any, how: Labelling) -> Iterator[Solution]:
    """The stored answers of a prompt, or sampled ones."""
    for number, stored in enumerate(prompt.completions):
        yield solution(prompt, number, render_completion(prompt, stored, tokenizer), tokenizer)
    if not prompt.completions:
        sampling = Sampling(how.max_tokens)
        found = engine.generate([prompt], sampling, how.num_solutions, [seed_of(how.seed, prompt.id)])[0]
        for number, rollout in enumerate(found):
            yield solution(prompt, number, rollout.ids, tokenizer)


def solution(prompt: Prompt, number: int, ids: tuple[int, ...], tokenizer: Any) -> Solution:
    """The solution that the tokens are."""
    return Solution(prompt, number, tokenizer.decode(list(ids), skip_special_tokens=True), ids)


def labelled(
    some: Sequence[Solution], engine: Engine, tokenizer: Any, scorer: Scorer, how: Labelling, pool: Pool
) -> list[dict[str, Any]]:
    """The rows of the solutions that can be labelled."""
    cuts = [steps_of(solution.text, how.separator) for solution in some]
    prefixes = [(n, ids) for n, solution in enumerate(some) for ids in before_last(solution, cuts[n], tokenizer)]
    asked = [replace(some[n].prompt, ids=(*some[n].prompt.ids, *ids)) for n, ids in prefixes]
    seeds = [seed_of(how.seed, f"{some[n].id} {len(ids)}") for n, ids in prefixes]
    found = engine.generate(asked, Sampling(how.max_tokens), how.num_completions, seeds) if asked else []

    def whole(prefix: tuple[int, ...], rest: Rollout) -> Rollout:
        ids = (*prefix, *rest.ids)
        return Rollout(ids, tokenizer.decode(list(ids), skip_special_tokens=True), truncated=rest.truncated)

    tried = [
        Group(some[n].prompt, tuple(whole(ids, rest) for rest in rests))
        for (n, ids), rests in zip(prefixes, found, strict=True)
    ]
    own = [Group(solution.prompt, (Rollout(solution.ids, solution.text),)) for solution in some]
    judged = [
        [int(s[scorer.name].value >= RIGHT) for s in group.scores if s[scorer.name].value is not None]
        for group in score([*tried, *own], [scorer], Scoring(max_error_share=1.0), pool)
    ]
    outcomes: list[list[list[int]]] = [[] for _ in some]
    for (n, _), found_right in zip(prefixes, judged, strict=False):
        outcomes[n].append(found_right)
    rows = []
    for solution, steps, tries, last in zip(some, cuts, outcomes, judged[len(tried) :], strict=True):
        if steps and last and all(tries):
            prompt = solution.prompt
            rows.append(
                {
                    "id": solution.id,
                    "prompt": prompt.text if prompt.messages is None else list(prompt.messages),
                    "reference": prompt.reference,
                    "steps": [step for step, _ in steps],
                    "labels": [*(label(right, how.kind, how.eta) for right in tries), float(last[0])],
                    "outcomes": tries,
                }
            )
    return rows


def before_last(solution: Solution, steps: Sequence[tuple[str, int]], tokenizer: Any) -> list[tuple[int, ...]]:
    """The solution's tokens up to the end of each step but the last."""
    ends = tuple((end, 0.0) for _, end in steps[:-1])
    return [solution.ids[: place + 1] for place, _ in laid_on_sampled(solution.ids, solution.text, ends, tokenizer)]


def main(words: Sequence[str]) -> int:
    """The command: three names, then keys of Labelling, `data.<key>`, `model.<key>` and `engine`."""
    from llmrl.problems import validated
    from llmrl.recipe_file import parse_overrides

    if len(words) < 3:
        print(__doc__, f"Keys: {', '.join(Labelling.model_fields)}, data.<key>, model.<key>, engine.", file=sys.stderr)
        return 2
    tree = dict(parse_overrides(words[3:]).values)
    try:
        data = validated(Data, {"source": words[1]} | tree.pop("data", {}))
        model = validated(Model, {"path": words[0]} | tree.pop("model", {}))
        engine = tree.pop("engine", "transformers")
        counts = write_labels(model, data, Path(words[2]), validated(Labelling, tree), engine)
    except LlmrlError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(", ".join(f"{number} {name.replace('_', ' ')}" for name, number in counts.items()), f"→ {words[2]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
