"""Recipes that are damaged or made up: one LlmrlError, never a traceback, a hang or a flood."""

from itertools import pairwise

import pytest
import yaml
from fuzzing import PLAIN, TEXTS, changed, damaged, inputs, survives
from hypothesis import given
from hypothesis import strategies as st

from llmrl.composition import build_stage
from llmrl.recipe import RECIPES, resolve
from llmrl.rescoring import named
from llmrl.scoring import make_scorers

FILES = sorted(RECIPES.rglob("*.yaml"))
BYTES = [path.read_bytes() for path in FILES]
VALUES = [yaml.safe_load(path.read_bytes()) for path in FILES]
WORDS = [
    "model.path",
    "data.source",
    "training.steps",
    "seed",
    "stages.sft.training.steps",
    "scorers",
    "evaluation.x",
    "base",
]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "base").symlink_to(RECIPES / "base")
    return folder / "r.yaml"


def read(file, content, words=()):
    """As far as a command goes before it loads anything."""
    file.write_bytes(content)
    recipe = resolve(file, words)
    for stage in recipe.stages:
        build_stage(stage)
        make_scorers(stage.scorers)
    return recipe


@inputs(500)
@given(st.sampled_from(BYTES).flatmap(damaged))
def test_damaged_recipes(file, content):
    survives(read, file, content)


@inputs(700)
@given(st.sampled_from(VALUES).flatmap(changed))
def test_changed_recipes(file, values):
    survives(read, file, yaml.safe_dump(values, allow_unicode=True).encode("utf-8", "surrogatepass"))


@inputs(1500)
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass")))
def test_made_up_recipes(file, content):
    survives(read, file, content)


@inputs(300)
@given(st.lists(st.builds("{}={}".format, st.sampled_from(WORDS) | TEXTS, TEXTS | PLAIN.map(str)), max_size=3))
def test_made_up_overrides(file, words):
    survives(read, file, BYTES[0], words)


@inputs(300)
@given(TEXTS | PLAIN.map(lambda value: yaml.safe_dump(value)))
def test_made_up_scorers_of_the_command_line(text):
    survives(named, text)


BOMBS = {
    "aliases": "a: &a [x, x]\n" + "".join(f"{c}: &{c} [*{b}, *{b}, *{b}]\n" for b, c in pairwise("abcdefghijk")),
    "merges": "a: &a {x: 1}\nb: {" + ", ".join(["<<: *a"] * 5000) + "}",
    "deep lists": "[" * 100_000,
    "deep mappings": "".join(" " * i + f"a{i}:\n" for i in range(400)),
    "a long line": "name: " + "x" * 60_000,
    "many keys": "".join(f"k{i}: 1\n" for i in range(6_000)),
    "too large": "# " + "x" * (1 << 20),
    "a long number": "seed: " + "9" * 100_000,
    "an anchor in itself": "a: &a [*a]",
    "python": "a: !!python/object/apply:os.system ['true']",
    "a key of lists": "? [a, b]\n: 1",
    "two documents": "a: 1\n---\nb: 1",
    "directives": "%YAML 9.9\n---\na: 1",
}  # fmt: skip


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_bombs(file, text):
    assert survives(read, file, text.encode()) is None
