"""Name → part. One literal table a kind; nothing is imported until it is asked for.

A part is a callable: positional parameters name the arrays it reads, keyword-only parameters are its options.
`module:attribute` works wherever a name does. Other packages add scorers and benchmarks by entry point.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from llmrl.errors import CatalogError, nearest

TABLES: dict[str, dict[str, str]] = {
    "algorithms": {
        "grpo": "llmrl.algorithms.grpo:grpo",
        "ppo": "llmrl.algorithms.ppo:ppo",
        "dpo": "llmrl.algorithms.dpo:dpo",
        "fcp": "llmrl.algorithms.fcp:fcp",
        "sft": "llmrl.algorithms.sft:sft",
        "bradley_terry": "llmrl.algorithms.bradley_terry:bradley_terry",
        "process_reward": "llmrl.algorithms.process_reward:process_reward",
    },
    "combiners": {
        "weighted_sum": "llmrl.combiners.weighted_sum:weighted_sum",
        "product": "llmrl.combiners.product:product",
        "gated": "llmrl.combiners.gated:gated",
        "first_that_applies": "llmrl.combiners.first_that_applies:first_that_applies",
        "kl_in_reward": "llmrl.combiners.kl_in_reward:kl_in_reward",
        "process_rewards": "llmrl.combiners.process_rewards:process_rewards",
    },
    "selections": {
        "one_right_one_wrong": "llmrl.selections.contrast:one_right_one_wrong",
    },
    "conditions": {
        "feedback": "llmrl.conditions.feedback:Feedback",
    },
    "advantages": {
        "grpo": "llmrl.advantages.group:standardised",
        "gae": "llmrl.advantages.gae:gae",
    },
    "shaping": {},
    "objectives": {
        "clipped_surrogate": "llmrl.objectives.policy:clipped_surrogate",
        "value": "llmrl.objectives.value:value",
        "dpo": "llmrl.objectives.preference:dpo",
        "likelihood": "llmrl.objectives.likelihood:likelihood",
        "bradley_terry": "llmrl.objectives.bradley_terry:bradley_terry",
        "process_reward": "llmrl.objectives.process:process_reward",
    },
    "regularizers": {
        "kl_k2": "llmrl.regularizers.kl:kl_k2",
        "kl_k3": "llmrl.regularizers.kl:kl_k3",
        "entropy": "llmrl.regularizers.entropy:entropy_bonus",
    },
    "engines": {
        "transformers": "llmrl.rollout.transformers:TransformersEngine",
        "vllm": "llmrl.rollout.vllm:VllmEngine",
        "replay": "llmrl.rollout.replay:ReplayEngine",
        "scripted": "llmrl.rollout.scripted:ScriptedEngine",
    },
    "sources": {
        "arithmetic_chain": "llmrl.data.tasks:arithmetic_chain",
        "arithmetic_demonstrations": "llmrl.data.tasks:arithmetic_demonstrations",
        "addition": "llmrl.data.tasks:addition",
        "addition_demonstrations": "llmrl.data.tasks:addition_demonstrations",
        "addition_pairs": "llmrl.data.tasks:addition_pairs",
        "addition_solutions": "llmrl.data.solutions:addition_solutions",
        "addition_steps": "llmrl.data.solutions:addition_steps",
        "countdown": "llmrl.data.puzzles:countdown",
        "sorting": "llmrl.data.puzzles:sorting",
        "letter_count": "llmrl.data.puzzles:letter_count",
        "bracket_closing": "llmrl.data.puzzles:bracket_closing",
        "base_conversion": "llmrl.data.puzzles:base_conversion",
        "instruction_format": "llmrl.data.puzzles:instruction_format",
        "code_fix": "llmrl.data.code_fix:code_fix",
        "reasoning_gym": "llmrl.data.reasoning_gym:reasoning_gym",
    },
    "models": {
        "tiny": "llmrl.policy.tiny:tiny",
    },
}
PLUG_INS = {"scorers": "llmrl.scorers", "benchmarks": "llmrl.benchmarks"}


def kinds() -> list[str]:
    """Every kind of thing that a recipe can name."""
    return [*TABLES, *PLUG_INS]


@functools.cache
def table(kind: str) -> dict[str, str]:
    """{name: 'module:attribute'} of one kind, plug-ins included. CatalogError for an unknown kind or a bad plug-in."""
    if kind in TABLES:
        return TABLES[kind]
    if kind not in PLUG_INS:
        raise CatalogError(f"no kind named {kind!r}.{nearest(kind, kinds())} Kinds: {', '.join(kinds())}.")
    found: dict[str, str] = {}
    for entry in entry_points(group=PLUG_INS[kind]):
        module = importlib.import_module(entry.value.split(":")[0])
        catalog = getattr(module, "CATALOG", None)
        if not isinstance(catalog, dict):
            where = getattr(module, "__file__", None) or list(getattr(module, "__path__", ["?"]))[0]
            raise CatalogError(
                f"plug-in {entry.value!r} has no CATALOG: it resolved to {where}, another distribution owns that name. "
                "Run from the checkout root or uninstall it."
            )
        found |= catalog
    return found


def get(kind: str, name: str) -> Callable[..., Any]:
    """The callable behind a catalog name or a 'module:attribute'.

    Raises CatalogError with the nearest right name, or with the import's own error.
    """
    known = table(kind)
    path = known.get(name, name)
    if ":" not in path:
        raise CatalogError(
            f"no {singular(kind)} named {name!r}.{nearest(name, known)} `llmrl list {kind}` shows all {len(known)}; "
            "your own is named module:attribute."
        )
    module_name, _, attribute = path.partition(":")
    if name not in known and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a user's own module stands in the working directory
    try:
        value: Any = importlib.import_module(module_name)
    except Exception as error:  # whatever the module does when it is imported
        kind_of = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
        raise CatalogError(f"{singular(kind)} {name!r}: cannot import {module_name}: {kind_of}{error}.") from error
    for step in attribute.split("."):
        if not hasattr(value, step):
            public = [n for n in vars(value) if not n.startswith("_")] if hasattr(value, "__dict__") else []
            raise CatalogError(f"{singular(kind)} {name!r}: {module_name} has no {attribute!r}.{nearest(step, public)}")
        value = getattr(value, step)
    return value


def split_named(named: str | dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(name, options) of what a recipe names: 'vllm' or {name: vllm, <options>}."""
    if isinstance(named, str):
        return named, {}
    if not isinstance(named.get("name"), str):
        raise CatalogError(f"{named!r} has no name. Expected a name or {{name: ..., <option>: ...}}.")
    return named["name"], {k: v for k, v in named.items() if k != "name"}


def singular(kind: str) -> str:
    """'algorithms' -> 'algorithm'."""
    return kind[:-1] if kind.endswith("s") else kind


def unwrap(part: Any) -> Any:
    """The function or the object behind a functools.partial."""
    while isinstance(part, functools.partial):
        part = part.func
    return part


def name_of(part: Any) -> str:
    """How a part is called in reports: the function's name, or the class's for an object."""
    inner = unwrap(part)
    return getattr(inner, "__name__", type(inner).__name__)


def inputs_of(part: Any) -> list[str]:
    """The arrays that a part reads: its positional parameters; for an object with memory those of `apply`, less state."""
    inner = unwrap(part)
    if not inspect.isfunction(inner) and hasattr(inner, "apply"):
        inner = inner.apply
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [p.name for p in inspect.signature(inner).parameters.values() if p.kind in positional]
    return [n for n in names if n not in ("self", "state")]


def options_of(part: Any) -> dict[str, inspect.Parameter]:
    """The options of a part: its keyword-only parameters (of `__init__` for a class), with their annotations resolved."""
    inner = unwrap(part)
    target = inner.__init__ if inspect.isclass(inner) else inner
    parameters = inspect.signature(target, eval_str=True).parameters.values()
    return {p.name: p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def summary(kind: str, name: str) -> tuple[str, str]:
    """(first line of the docstring, paper) of a catalog row, read without importing torch where that can be helped."""
    doc = inspect.getdoc(get(kind, name)) or ""
    paper = re.search(r"arXiv:\d{4}\.\d{4,5}", doc)
    return doc.split("\n")[0], paper.group(0) if paper else ""
