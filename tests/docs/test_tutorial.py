"""What the documents say is run as it stands: files are written, commands run, in the order of the page."""

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from llmrl import cli
from llmrl.recipe import resolve
from llmrl.recipe_tree import Tree, overlay
from llmrl.tracking.folder import RunFolder

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\w+\.(?:yaml|py))\b")
METRIC = re.compile(r'"([a-z_]+/(?:[a-z_]+|\{[a-z_.()]+\}))"')
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory, and no module left over that was imported from it."""
    path, modules = list(sys.path), set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def follow(page: Path, folder: Path) -> None:
    """Do what the page says: blocks that open with a file's name are written, the others are run."""
    for language, text in BLOCK.findall(page.read_text()):
        name = FILE.match(text)
        if name:
            (folder / name[1]).write_text(text)
        elif language == "python":
            (folder / "block.py").write_text(text)
            runpy.run_path(str(folder / "block.py"))
        elif language == "bash":
            for line in text.replace("\\\n", " ").splitlines():
                run(line)


def run(line: str) -> None:
    """One command. `llmrl` runs in this process, which has imported everything already."""
    words = shlex.split(line, comments=True)
    if words[:1] == ["llmrl"]:
        assert cli.main(words[1:]) == 0, line
    elif words:
        subprocess.run(["bash", "-c", line], check=True, stdout=subprocess.DEVNULL)


def rewards(run_folder: Path) -> list[float]:
    return [row["reward/mean"] for row in RunFolder(run_folder).metrics() if "reward/mean" in row]


def test_the_readme_recipe_and_reward_learn(folder):
    follow(ROOT / "README.md", folder)
    found = rewards(folder / "runs" / "sums")
    assert sum(found[-10:]) / 10 > sum(found[:10]) / 10 + 0.03


@pytest.mark.processes
def test_the_tutorial_runs_from_start_to_end(folder, capsys):
    follow(ROOT / "docs" / "tutorial.md", folder)
    printed = capsys.readouterr().out
    assert "accuracy" in printed and "resuming" in printed
    found = rewards(folder / "runs" / "sums")
    assert sum(found[-10:]) / 10 > sum(found[:10]) / 10 + 0.03
    for name in ("short/quickstart", "runs/sums", "runs/stopped", "runs/lora", "runs/two"):
        assert (folder / name / "report.html").stat().st_size > 10_000, name


HOW_TO = [t for language, t in BLOCK.findall((ROOT / "docs" / "how-to.md").read_text()) if language == "yaml"]


@pytest.mark.parametrize("text", HOW_TO, ids=[text.splitlines()[0] for text in HOW_TO])
def test_every_fragment_of_the_how_to_is_a_recipe(folder, text):
    base = {"model": {"make": "tiny"}, "data": {"source": "addition"}, "algorithm": {"name": "grpo"}}
    fragment = yaml.safe_load(text)
    (folder / "fragment.yaml").write_text(yaml.safe_dump(overlay(Tree(base), Tree(fragment)).values))
    resolve(folder / "fragment.yaml")


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for target in LINK.findall(text):
        assert (ROOT / page).parent.joinpath(target).exists(), target


def test_the_monitors_page_has_every_metric_in_the_source():
    page = (ROOT / "docs" / "monitors.md").read_text()
    listed = {re.sub("<.*?>", "*", name) for name in re.findall(r"^\| `([^`]+)`", page, re.MULTILINE)}
    files = (
        p for p in (ROOT / "llmrl").rglob("*.py") if p.parent.name not in ("tracking", "data") and p.name != "cli.py"
    )
    source = [p.read_text() for p in files]
    written = {re.sub("{.*?}", "*", name) for text in source for name in METRIC.findall(text)} - {"application/json"}
    assert len(written) > 25 and written <= listed
