"""docs/methods.md is what its generator makes of the tree."""

from __future__ import annotations

from benchmarks.lab import table
from benchmarks.lab.checks import stored
from llmrl import catalog
from llmrl.composition import build


def test_the_page_is_up_to_date():
    assert table.PAGE.read_text(encoding="utf-8") == table.page(), "run: python -m benchmarks.lab.table"


def test_every_method_has_its_line():
    lines = table.page().splitlines()
    for name in catalog.table("algorithms"):
        assert sum(line.startswith(f"| `{name}` |") for line in lines) == 1 + (name in stored())


def test_what_did_not_come_out_says_so():
    finding = {"effect": 0.25, "low": -0.1, "high": 0.6, "seeds": 8, "came_out": False}
    assert table.verdict(finding) == "**did not come out**: 0.25 (-0.1 to 0.6)"
    assert table.verdict(finding | {"seeds": 0, "came_out": True}) == "came out: 0.25"
    assert table.verdict(None) == "none yet"


def test_tests_are_found_by_what_they_call(tmp_path):
    file = tmp_path / "test_some.py"
    file.write_text(
        "from llmrl.advantages import bnpo as estimator, gae\nfrom llmrl.objectives.policy import clipped_surrogate\n"
        "from llmrl.objectives.policy import two_sided_clip\n\n\ndef test_it():\n"
        "    estimator.bnpo(1), clipped_surrogate(2)\n"
    )
    found = table.named_in(file)
    assert {"llmrl.advantages.bnpo.bnpo", "llmrl.objectives.policy.clipped_surrogate"} <= found
    assert not {"llmrl.objectives.policy.two_sided_clip", "llmrl.advantages.gae"} & found  # imported, never used


def test_stages_are_read_off_the_algorithm():
    text = table.stages_of(build({"name": "grpo", "kl_coef": 0.04}))
    assert text == "advantage `standardised`; objective `clipped_surrogate`; regularizers `kl_k3`; sequence_mean"


def test_recipes_are_found_wherever_a_stage_names_the_method():
    assert {"algorithms/grpo", "quickstart"} <= set(table.recipes()["grpo"])
