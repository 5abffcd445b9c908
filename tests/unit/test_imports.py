"""Imports run one way, and what has to be light is light."""

from __future__ import annotations

import ast
import configparser
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from llmrl import catalog

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "accelerate", "datasets", "numpy", "peft", "trl", "vllm", "pydantic", "yaml", "rich")
CPU_LIMIT = 0.4  # seconds; measured 0.09


def python(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)


def test_the_import_contracts_of_setup_cfg_hold():
    command = [str(Path(sys.executable).with_name("lint-imports")), "--config", "setup.cfg", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "3 kept, 0 broken" in done.stdout, done.stdout + done.stderr


def test_every_module_of_the_core_has_its_layer():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    layers = config["importlinter:contract:core"]["layers"].replace("|", " ").replace(":", " ").split()
    named = {layer.strip("()") for layer in layers}
    for folder, prefix in [(ROOT / "llmrl", ""), (ROOT / "llmrl" / "training", "training.")]:
        for path in folder.iterdir():
            if path.stem.startswith("__") or not (path.suffix == ".py" or (path / "__init__.py").exists()):
                continue
            if prefix + path.stem != "training":  # its modules stand on several layers
                assert prefix + path.stem in named, f"{path.name} has no place in the layers of setup.cfg"


@pytest.mark.parametrize("module", ["llmrl", "llmrl.cli", "llmrl.types", "llmrl.catalog", "reward_models"])
def test_importing_it_loads_nothing_heavy(module):
    done = python("-c", f"import sys, {module}; print(*[m for m in {HEAVY} if m in sys.modules])")
    assert done.returncode == 0 and done.stdout.split() == [], done.stdout + done.stderr


def test_reading_a_recipe_loads_no_torch():
    done = python("-c", "import sys, llmrl.recipe; print(*[m for m in ('torch', 'transformers') if m in sys.modules])")
    assert done.returncode == 0 and done.stdout.split() == [], done.stdout + done.stderr


def test_help_takes_less_than_the_blink_of_an_eye():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = python("-m", "llmrl.cli", "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0 and "train" in done.stdout
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent < CPU_LIMIT, f"llmrl --help took {spent:.2f} s of processor time"


ASIDE = {"weighted_sum", "Epochs", "Selection", "PerToken"}  # what is done where a recipe says nothing; plain nouns
KINDS = (
    "algorithms",
    "advantages",
    "objectives",
    "regularizers",
    "shaping",
    "selections",
    "combiners",
    "updates",
    "sampling",
)
TRAINER = [
    "loop.py",
    "collect.py",
    "second_batches.py",
    "references.py",
    "run.py",
    "config.py",
    "cli.py",
    "commands.py",
    "api.py",
    "observe.py",
    "measure.py",
]


@pytest.mark.parametrize(
    "path", [*TRAINER, *(f"training/{p.name}" for p in (ROOT / "llmrl" / "training").glob("*.py"))]
)
def test_the_trainer_names_no_method(path):
    """A method is parts and a row of the catalog: nothing that trains may know one by name or import one."""
    tree = ast.parse((ROOT / "llmrl" / path).read_text())
    methods = {name for kind in ("algorithms", "objectives", "advantages") for name in catalog.table(kind)}
    words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[1:2] in [[kind] for kind in KINDS]
        for alias in node.names
    }
    assert not imported - ASIDE
    assert not words & methods
