"""What is in the wheel: three packages that are typed, the recipes, and the entry points that join them."""

from __future__ import annotations

import configparser
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ["llmrl", "reward_models", "eval"]
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that a copy of the checkout builds; a copy, because building leaves folders behind."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in [*PACKAGES, "recipes", "tests", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"]:
        subprocess.run(["cp", "-r", str(ROOT / name), str(source)], check=True)
    done = subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return zipfile.ZipFile(next(out.glob("llmrl-*.whl")))


def test_top_level_is_the_three_packages_and_nothing_else(wheel):
    top = {name.split("/")[0] for name in wheel.namelist()}
    assert {name for name in top if not name.endswith((".dist-info", ".data"))} == set(PACKAGES)


def test_every_module_of_the_checkout_is_in_it(wheel):
    there = {name for name in wheel.namelist() if name.endswith(".py")}
    assert there == {str(path.relative_to(ROOT)) for name in PACKAGES for path in (ROOT / name).rglob("*.py")}


def test_every_package_is_typed(wheel):
    assert {f"{name}/py.typed" for name in PACKAGES} <= set(wheel.namelist())


def test_every_recipe_is_in_it(wheel):
    shipped = {name.split("/share/llmrl/recipes/")[1] for name in wheel.namelist() if "/share/llmrl/recipes/" in name}
    assert shipped == {str(path.relative_to(ROOT / "recipes")) for path in (ROOT / "recipes").rglob("*.yaml")}


def test_entry_points_name_the_command_and_the_two_plug_ins(wheel):
    config = configparser.ConfigParser()
    config.read_string(wheel.read(next(n for n in wheel.namelist() if n.endswith("entry_points.txt"))).decode())
    assert {section: dict(config[section]) for section in config.sections()} == {
        "console_scripts": {"llmrl": "llmrl.cli:main"},
        "llmrl.scorers": {"reward_models": "reward_models"},
        "llmrl.benchmarks": {"eval": "eval"},
    }
