"""Writes docs/methods.md from the catalog, the tests, the findings and the recipes; docs/methods_notes.md is added behind.

python benchmarks/lab/table.py
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from benchmarks.lab.checks import CHECKS, FINDINGS, stored
from benchmarks.lab.finding import Finding
from llmrl import catalog
from llmrl.algorithm import STAGES, Algorithm
from llmrl.composition import build

ROOT = Path(__file__).resolve().parents[2]
PAGE, NOTES = ROOT / "docs" / "methods.md", ROOT / "docs" / "methods_notes.md"
SHARED = ("weighted_sum",)  # what nearly every method would name

INTRODUCTION = """# Methods

Written by `make lab` (`benchmarks/lab/table.py`) from the catalog, the tests, the stored findings and the recipes; only what
stands under *Notes* is typed by hand. `llmrl list algorithms` prints the methods with their papers, `llmrl show RECIPE` the
forward passes that one needs and why. The few lines that make a method stand in `recipes/algorithms/<name>.yaml`.

- **stages**: the parts a method is made of, in the order they run, and how losses on tokens are averaged.
- **golden**: ✓ where every part is used by a test in `tests/unit/`, whose numbers are worked out by hand, and the files.
- **contract**: ✓ where the suites in `tests/contract/` run over it and its parts, as they do for every row of the catalog; a
  number counts the tests that one of them is exempt from, [with the reasons](#exempt-from-tests-of-the-contract).
- **check**: an effect that its paper claims, in the smallest task that can show it: [how it is measured](#small-scale-checks).
"""
CHECKS_INTRODUCTION = """
## Small-scale checks

Tables of logits and exact enumerations, with llmrl's own parts at work: `benchmarks/lab/`. The effect is the mean over seeds,
the interval mean ± t·s/√n (95 %, Student's t); where something holds without chance, from the least to the greatest of the
seeds; without an interval it is one exact number. A check *came out* when all of its interval is where it is expected. The
settings were chosen so that the effect can show: direction counts, not size, and nothing here says how a method fares on a
language model.

*TOY-A*: four prompts, answers of three symbols out of five, two accepted ones a prompt, first success 0.07; 25 batches of
8 rollouts a prompt. *T1*: eight prompts, sixteen answers of one symbol, four of them right, first logits from N(0, 0.7²); 8
rollouts a prompt, four updates a batch, step 0.5 a prompt.
"""
EXEMPT_INTRODUCTION = """
## Exempt from tests of the contract

From the tables in `tests/contract/`, each with its reason:
"""


def parts_of(algorithm: Algorithm) -> list[tuple[str, Any]]:
    """(stage, part) of everything that a method is made of."""
    found = [(stage, part) for stage in STAGES for part in algorithm.at(stage)]
    for extra in algorithm.extra:
        found += [("extra", part) for part in extra.objective]
        found += [("extra", extra.gate)] if extra.gate is not None else []
    return found


def place_of(part: Any) -> str:
    """'llmrl.objectives.policy.clipped_surrogate' of a function, a partial of it, a class or an object."""
    inner = catalog.unwrap(part)
    declaration = inner if hasattr(inner, "__qualname__") else type(inner)
    return f"{declaration.__module__}.{declaration.__qualname__}"


def stages_of(algorithm: Algorithm) -> str:
    held: dict[str, list[str]] = {}
    for stage, part in parts_of(algorithm):
        name = place_of(part).rsplit(".", 1)[1]
        if name not in SHARED:
            held.setdefault(stage, []).append(f"`{name}`")
    extras = [f"second batch: {extra.source}" for extra in algorithm.extra]
    before = [f"before: {algorithm.before.num_samples} reference rollouts a prompt"] if algorithm.before else []
    return "; ".join(
        [*before, *(f"{stage} {' + '.join(names)}" for stage, names in held.items()), *extras, algorithm.reduce]
    )


def named_in(path: Path) -> set[str]:
    """Dotted places that a test file names: what it imports, and attributes of the modules that it imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            aliases |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    found = {place for alias, place in aliases.items() if alias in used}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            found.add(f"{aliases[node.value.id]}.{node.attr}")
    return found


def golden_tests() -> dict[str, list[str]]:
    """{place of a part: test files that name it}."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests" / "unit").glob("test_*.py")):
        for place in named_in(path):
            found.setdefault(place, []).append(path.name)
    return found


def exemptions() -> dict[str, list[str]]:
    """{name of a part or method: reasons}, from every literal {name: reason} at the top of the contract's files."""
    names = {name for kind in [*STAGES.values(), "algorithms"] for name in catalog.table(kind)}
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests" / "contract").glob("test_*.py")):
        for table in literal_tables(path):
            for name, reason in table.items():
                if name in names and isinstance(reason, str):
                    found.setdefault(name, []).append(reason)
    return found


def literal_tables(path: Path) -> Iterator[dict[Any, Any]]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        value = getattr(node, "value", None)
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(value, ast.Dict):
            try:
                yield ast.literal_eval(value)
            except ValueError:
                continue


def recipes() -> dict[str, list[str]]:
    """{method: recipes that name it}, by their place below recipes/."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "recipes").rglob("*.yaml")):
        for name in dict.fromkeys(methods_in(yaml.safe_load(path.read_text(encoding="utf-8")))):
            found.setdefault(name, []).append(path.relative_to(ROOT / "recipes").with_suffix("").as_posix())
    return found


def methods_in(tree: Any) -> Iterator[str]:
    if isinstance(tree, dict):
        algorithm = tree.get("algorithm")
        if isinstance(algorithm, dict) and isinstance(algorithm.get("name"), str):
            yield algorithm["name"]
        for value in tree.values():
            yield from methods_in(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from methods_in(value)


def catalog_names(parts: list[tuple[str, Any]]) -> set[str]:
    """Under which names of the catalog the parts stand."""
    places = {place_of(part) for _, part in parts}
    kinds = set(STAGES.values())
    return {name for kind in kinds for name, path in catalog.table(kind).items() if path.replace(":", ".") in places}


def row(method: str, golden: dict[str, list[str]], exempt: dict[str, list[str]], recipe: dict[str, list[str]]) -> str:
    """The method's line of the first table."""
    algorithm = build({"name": method})
    parts = parts_of(algorithm)
    doc = catalog.get("algorithms", method).__doc__ or ""
    papers = ", ".join(dict.fromkeys(re.findall(r"arXiv:(\d{4}\.\d{4,5})", doc)))
    places = list(dict.fromkeys(place_of(part) for _, part in parts if place_of(part).rsplit(".", 1)[1] not in SHARED))
    tested = [place for place in places if place in golden]
    files = sorted({min(golden[place], key=lambda f: (sum(f in fs for fs in golden.values()), f)) for place in tested})
    mark = "✓" if len(tested) == len(places) else f"{len(tested)} of {len(places)}"
    reasons = sum(len(exempt.get(name, [])) for name in {method, *catalog_names(parts)})
    cells = [
        f"`{method}`",
        papers,
        stages_of(algorithm),
        f"{mark} {', '.join(f.removeprefix('test_').removesuffix('.py') for f in files)}",
        "✓" + (f" ({reasons})" if reasons else ""),
        verdict(stored().get(method)),
        ", ".join(f"`{name}`" for name in recipe.get(method, [])),
    ]
    return f"| {' | '.join(cells)} |"


def verdict(found: dict[str, Any] | None) -> str:
    if found is None:
        return "none yet"
    return f"{'came out' if found['came_out'] else '**did not come out**'}: {effect(found)}"


def effect(found: dict[str, Any]) -> str:
    if not found["seeds"]:
        return f"{found['effect']:.3g}"
    return f"{found['effect']:.3g} ({found['low']:.3g} to {found['high']:.3g})"


def check_row(method: str, found: dict[str, Any]) -> str:
    cells = [
        f"`{method}`",
        found["what"].replace("|", "\\|"),
        Finding(**{name: found[name] for name in Finding._fields}).expected,
        effect(found),
        "yes" if found["came_out"] else "**no**",
        str(found["seeds"] or "exact"),
        f"{found['cpu_seconds']:.1f}",
        f"`{found['command']}`",
    ]
    return f"| {' | '.join(cells)} |"


def table(names: list[str], rows: list[str]) -> str:
    return "\n".join([f"| {' | '.join(names)} |", "|---" * len(names) + "|", *rows])


def page() -> str:
    """The whole of docs/methods.md."""
    golden, exempt, recipe, findings = golden_tests(), exemptions(), recipes(), stored()
    methods = list(catalog.table("algorithms"))
    rows = [row(method, golden, exempt, recipe) for method in methods]
    out = sum(found["came_out"] for found in findings.values())
    count = f"\n{len(methods)} methods. Of {len(findings)} checks {out} came out.\n"
    checks = [check_row(method, findings[method]) for method in CHECKS if method in findings]
    reasons = [f"- `{name}`: {'; '.join(exempt[name])}" for name in sorted(exempt)]
    head = ["method", "arXiv", "stages", "golden", "contract", "check", "recipes"]
    columns = ["method", "what was measured", "expected", "effect", "came out", "seeds", "CPU seconds", "command"]
    return "\n".join(
        [
            *(INTRODUCTION, count, table(head, rows)),
            *(CHECKS_INTRODUCTION, table(columns, checks)),
            *(EXEMPT_INTRODUCTION, *reasons, ""),
            NOTES.read_text(encoding="utf-8"),
        ]
    )


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)} from {FINDINGS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
