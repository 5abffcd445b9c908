"""Asks the real harnesses for their verdicts on the grid and writes tests/fixtures/protocol_verdicts.json.

lm-eval 0.4.13 and verl 0.9.1 need an environment of their own, made by hand:
    python -m venv harnesses && harnesses/bin/pip install math-verify==0.9.0 antlr4-python3-runtime==4.11 numpy
    harnesses/bin/pip install --no-deps lm-eval==0.4.13 verl==0.9.1
    harnesses/bin/python benchmarks/protocol_fixtures.py gsm8k/ hendrycks minerva verl/ dapo
math-verify is asked in the project's environment: with the older parser that lm-eval wants it reads percents otherwise.
    .venv/bin/python benchmarks/protocol_fixtures.py math_verify
The arguments are beginnings of protocol names; other verdicts in the file stay. Modules are loaded from their files, so
that neither package has to be importable as a whole.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import json
import re
import string
import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType

Judge = Callable[[str, str], bool]
FIXTURES = Path(__file__).resolve().parents[1] / "tests" / "fixtures"
sys.path.insert(0, str(FIXTURES))

import protocol_grid as grid  # noqa: E402


def main(wanted: list[str]) -> None:
    cases, path = grid.cases(), FIXTURES / "protocol_verdicts.json"
    about = {"count": len(cases), "sha256": grid.digest(cases)}
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    same = all(stored.get(key) == value for key, value in about.items())
    verdicts = stored["verdicts"] if same else {}
    for name, judge in judges().items():
        if name.startswith(tuple(wanted)):
            found = [verdict(judge(), case) for case in cases]
            verdicts[name] = grid.packed(found)
            print(f"{name}: {sum(found)} of {len(found)} right")
    path.write_text(json.dumps(about | {"verdicts": verdicts}, indent=1) + "\n", encoding="utf-8")


def verdict(judge: Judge, case: grid.Case) -> bool:
    """The harness's verdict; an answer on which it stops with an error is not right."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return bool(judge(case.text, case.gold))
    except AssertionError:
        return False


def judges() -> dict[str, Callable[[], Judge]]:
    """name of our protocol -> what loads the harness's own functions on (text, gold)."""
    return {
        "gsm8k/strict": lambda: lm_eval_gsm8k("#### (\\-?[0-9\\.\\,]+)", 0),
        "gsm8k/flexible": lambda: lm_eval_gsm8k("(-?[$0-9.,]{2,})|(-?[0-9]+)", -1),
        "hendrycks": hendrycks_last_box,
        "hendrycks/dollars": hendrycks_dollars,
        "minerva": minerva_exact_match,
        "verl/gsm8k": lambda: verl("gsm8k", without_commas),
        "verl/math": lambda: verl("math_reward"),
        "dapo": lambda: verl("math_dapo"),
        "math_verify": math_verify_defaults,
    }


@cache
def hendrycks_last_box() -> Judge:
    """lm-eval's is_equiv on the last box."""
    module = load("lm-eval", "lm_eval/tasks/hendrycks_math/utils.py")

    def judge(text: str, gold: str) -> bool:
        box = module.last_boxed_only_string(text)
        return box is not None and module.is_equiv(module.remove_boxed(box), gold)

    return judge


@cache
def hendrycks_dollars() -> Judge:
    """lm-eval's hendrycks_math as its task runs it."""
    module = load("lm-eval", "lm_eval/tasks/hendrycks_math/utils.py")
    return lambda text, gold: module.process_results({"solution": f"\\boxed{{{gold}}}"}, [text])["exact_match"]


@cache
def minerva_exact_match() -> Judge:
    """lm-eval's minerva_math, its exact_match."""
    module = load("lm-eval", "lm_eval/tasks/minerva_math/utils.py")

    def judge(text: str, gold: str) -> bool:
        answer = module.normalize_final_answer(module.get_unnormalized_answer(text))
        return module.is_equiv(answer, module.normalize_final_answer(gold))

    return judge


@cache
def verl(name: str, prepared: Callable[[str], str] = str) -> Judge:
    """One of verl's scorers; math_dapo's gives a dict."""
    module = load("verl", f"verl/utils/reward_score/{name}.py")

    def judge(text: str, gold: str) -> bool:
        found = module.compute_score(text, prepared(gold))
        return found["acc"] if isinstance(found, dict) else found

    return judge


def without_commas(gold: str) -> str:
    """As verl's preparation of GSM8K leaves the gold."""
    return gold.replace(",", "")


@cache
def math_verify_defaults() -> Judge:
    """math-verify on the text, the gold in a box."""
    from math_verify import parse, verify

    return lambda text, gold: verify(parse(f"\\boxed{{{gold}}}"), parse(text))


@cache
def lm_eval_gsm8k(pattern: str, select: int) -> Judge:
    """lm-eval's own regex filter and exact_match with the options of its gsm8k.yaml."""
    import numpy as np

    extraction = cut("lm-eval", "lm_eval/filters/extraction.py", "RegexFilter", {"re": re, "Filter": object})
    metric = cut("lm-eval", "lm_eval/api/metrics.py", "exact_match_hf_evaluate", {"re": re, "np": np, "string": string})
    chosen = extraction(regex_pattern=pattern, group_select=select)
    ignored = [",", "\\$", "(?s).*#### ", "\\.$"]

    def judge(text: str, gold: str) -> bool:
        answer = chosen.apply([[text]], [{}])[0][0]
        gold = grid.reference("gsm8k", gold)
        return metric([answer], [gold], regexes_to_ignore=ignored, ignore_case=True)["exact_match"] == 1.0

    return judge


def load(package: str, path: str) -> ModuleType:
    """A module of an installed package, from its file alone."""
    spec = importlib.util.spec_from_file_location(path.replace("/", "_")[:-3], distribution(package).locate_file(path))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cut(package: str, path: str, name: str, names: dict) -> Callable:
    """One class or function of a module that does not load without the whole package, undecorated."""
    tree = ast.parse(Path(distribution(package).locate_file(path)).read_text(encoding="utf-8"))
    node = next(node for node in tree.body if getattr(node, "name", None) == name)
    node.decorator_list = []
    future = ast.ImportFrom("__future__", [ast.alias("annotations")], 0)
    module = ast.fix_missing_locations(ast.Module([future, node], []))
    exec(compile(module, path, "exec"), names)  # noqa: S102  a published package's own code
    return names[name]


if __name__ == "__main__":
    main(sys.argv[1:] or [""])
