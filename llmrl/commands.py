"""What each command of `llmrl` does. A recipe's own sections are checked before anything heavy is imported."""

from __future__ import annotations

import textwrap
from argparse import Namespace
from pathlib import Path

from llmrl.errors import CatalogError, LlmrlError, ScoringError
from llmrl.tracking.text import plain_text

QUICKSTART = "quickstart"
# what only `llmrl score audit` takes, with defaults; what only `llmrl score FILE` takes
AUDIT_ONLY = {"data": None, "oracle": None, "full": 1.0, "none": 0.0, "limit": 50}
FILE_ONLY = {"bench": "--bench", "scorers": "--scorer", "protocol": "--protocol", "out": "--out"}


def say(text: object) -> None:
    """Print what may hold text of a model, of data or of a recipe from elsewhere."""
    print(plain_text(str(text)), flush=True)


def run_train(arguments: Namespace, overrides: list[str]) -> None:
    _train(arguments.recipe, overrides, arguments.num_processes)


def run_demo(arguments: Namespace, overrides: list[str]) -> None:
    _train(QUICKSTART, overrides, 1)


def _train(recipe: str, overrides: list[str], num_processes: int) -> None:
    from llmrl.recipe import resolve

    path = resolve(recipe, overrides).path
    from llmrl import api

    api.train(recipe=path, overrides=overrides, num_processes=num_processes)


def run_eval(arguments: Namespace, overrides: list[str]) -> None:
    from llmrl import api

    if arguments.target == "compare":
        say(api.compare(*two_folders(overrides)))
        return
    benchmarks = separated(arguments.bench)
    say(api.evaluate(arguments.target, benchmarks=benchmarks, overrides=overrides, out=arguments.out))


def run_compare(arguments: Namespace, overrides: list[str]) -> None:
    from llmrl.trials import compare

    recipes = [word for word in arguments.recipes if "=" not in word]
    words = [word for word in arguments.recipes if "=" in word] + overrides
    say(compare(recipes, words, seeds=arguments.seeds, metric=arguments.metric, out=Path(arguments.out)))


def two_folders(words: list[str]) -> list[str]:
    if len(words) != 2:
        raise LlmrlError(f"found {len(words)} folders to compare, expected two: llmrl eval compare FOLDER FOLDER.")
    return words


def separated(words: list[str]) -> list[str]:
    """['a,b', 'c'] -> ['a', 'b', 'c']."""
    return [name for word in words for name in word.split(",") if name]


def run_check(arguments: Namespace, overrides: list[str]) -> None:
    from llmrl.recipe import resolve

    path = resolve(arguments.recipe, overrides).path
    from llmrl import api

    say(api.check(path, overrides=overrides))


def run_show(arguments: Namespace, overrides: list[str]) -> None:
    """The recipe as YAML; parts and passes follow as comments, so that the output is a recipe too."""
    from llmrl.recipe import resolve

    recipe = resolve(arguments.recipe, overrides)
    say(recipe.annotated.rstrip("\n"))
    from llmrl import catalog
    from llmrl.composition import build_stage, described
    from llmrl.plan import droppable, passes

    for stage in recipe.stages:
        algorithm = build_stage(stage)
        engine, _ = catalog.split_named(stage.rollout.engine)
        say(f"\n# stage {stage.name}: parts, with what the method or the recipe sets")
        for field, parts in described(algorithm).items():
            say(f"#   {field}: {parts}")
        say(f"# stage {stage.name}: passes over a batch, and the parts that need them")
        for plan in passes(algorithm, online=engine != "replay"):
            say(f"#   {plan.name}: {plan.why}")
        if droppable(algorithm):
            say("#   rows with zero advantage are left out of them")


def run_list(arguments: Namespace, overrides: list[str]) -> None:
    from llmrl import catalog

    if arguments.kind is None:
        for kind in catalog.kinds():
            try:
                say(f"{kind:<13} {', '.join(catalog.table(kind)) or '-'}")
            except CatalogError as error:
                say(f"{kind:<13} {error}")
        return
    for name in catalog.table(arguments.kind):
        try:
            line, paper = catalog.summary(arguments.kind, name)
        except CatalogError as error:
            line, paper = str(error), ""
        say(f"{name:<26} {line}{f'  [{paper}]' if paper and paper not in line else ''}")


def run_report(arguments: Namespace, overrides: list[str]) -> None:
    from llmrl.tracking.report import write_report

    say(write_report(Path(arguments.run)))


def run_score(arguments: Namespace, overrides: list[str]) -> None:
    if arguments.target == "audit":
        if arguments.scorer is None:
            raise LlmrlError("llmrl score audit: no scorer. Name one; `llmrl list scorers` shows them.")
        if given := [word for key, word in FILE_ONLY.items() if getattr(arguments, key)]:
            raise LlmrlError(f"`llmrl score audit` takes no {', '.join(given)}; options of the scorer are <option>=….")
        audit_scorer(arguments, overrides)
        return
    if given := [f"--{key}" for key in AUDIT_ONLY if getattr(arguments, key) is not None]:
        more = " Write data.limit=N for the first rows of a data file." if "--limit" in given else ""
        raise LlmrlError(f"{', '.join(given)}: only `llmrl score audit SCORER` takes that.{more}")
    from llmrl import api

    words = [arguments.scorer, *overrides] if arguments.scorer else overrides
    say(
        api.score(
            arguments.target,
            benchmark=arguments.bench,
            scorers=arguments.scorers,
            protocols=separated(arguments.protocol),
            overrides=words,
            out=arguments.out,
        )
    )


def audit_scorer(arguments: Namespace, overrides: list[str]) -> None:
    """Print what a scorer makes of right answers, attacks and broken rows. ScoringError where a check fails."""
    from llmrl import catalog, oracles
    from llmrl.audit import audit
    from llmrl.config import Scoring
    from llmrl.pool import Pool
    from llmrl.problems import validated
    from llmrl.recipe_file import parse_overrides
    from llmrl.scoring import make_scorer, score

    asked = {k: v if (v := getattr(arguments, k)) is not None else default for k, default in AUDIT_ONLY.items()}
    options = parse_overrides(overrides).values
    rows = {"limit": asked["limit"]} | options.pop("data", {})
    rows |= {"source": arguments.data} if arguments.data else {}
    # a scorer that hangs is found out by a few calls, not after a minute for each of some thousand
    settings = validated(Scoring, {"timeout": 5.0, "max_error_share": 1.0} | options.pop("scoring", {}), "scoring")
    example = None if "source" in rows else oracles.stored_example(arguments.scorer)
    scorer = make_scorer({"name": arguments.scorer} | dict(example.options if example else {}) | options)
    with Pool() as pool:

        def judge(groups):
            return score(groups, [scorer], settings, pool)

        if example is None:
            oracle = catalog.get("scorers", arguments.oracle) if arguments.oracle else None
            marks = {"full": asked["full"], "none": asked["none"]}
            example = oracles.example_of(scorer.name, oracles.data_of(rows), judge, oracle=oracle, **marks)
        found = audit(scorer.name, example, judge)
    say(found)
    if found.failed:
        raise ScoringError(f"{scorer.name} failed {', '.join(check.name for check in found.failed)}.")


def run_serve(arguments: Namespace, overrides: list[str]) -> None:
    from llmrl.serving.fleet import ServerOptions
    from llmrl.serving.serve import ports_from, serve

    ports = ports_from(arguments.port, arguments.replicas)
    options = ServerOptions(
        arguments.model,
        arguments.max_model_len,
        arguments.precision,
        arguments.tensor_parallel,
        arguments.gpu_memory,
        arguments.kv_cache_megabytes,
    )
    serve(options, arguments.host, ports, Path(arguments.out), say)


def recipe_keys() -> str:
    """One paragraph a section of a recipe: its keys. For --help."""
    from llmrl.config import Run
    from llmrl.problems import leaves

    sections: dict[str, list[str]] = {}
    for dotted, _ in leaves(Run):
        section, _, key = dotted.rpartition(".")
        sections.setdefault(section or "the run", []).append(key)
    lines = [textwrap.fill(f"{s}: {', '.join(k)}", 110, subsequent_indent="    ") for s, k in sections.items()]
    how = "Any key of the recipe can be set: training.steps=100, --training.steps=100 or --training.steps 100."
    return "\n".join([how, *lines, "Options of parts: llmrl list KIND names them, llmrl check RECIPE checks them.", ""])
