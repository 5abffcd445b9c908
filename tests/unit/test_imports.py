"""Imports run one way, and what has to be light is light."""

from __future__ import annotations

import configparser
import resource
import subprocess
import sys
from pathlib import Path

import pytest

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
