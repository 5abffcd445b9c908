"""Every method has its check, every check a stored finding, and the cheap ones still point where the finding says."""

from __future__ import annotations

import pytest

from benchmarks.lab.checks import CHECKS, SEEDS, check, fast, stored
from benchmarks.lab.finding import Finding, found
from llmrl import catalog

FEW = 3  # seeds; enough for a direction
POINTED = [method for method in fast() if stored()[method]["came_out"]]


def test_every_method_has_a_check_of_its_name():
    assert sorted(CHECKS) == sorted(catalog.table("algorithms"))
    for method in CHECKS:
        assert check(method).__name__ == method


def test_every_check_has_a_stored_finding_of_all_seeds():
    rows = stored()
    assert list(rows) == list(CHECKS)
    for method, row in rows.items():
        finding = Finding(**{name: row[name] for name in Finding._fields})
        assert finding.method == method and finding.seeds in (0, SEEDS) and finding.expected
        assert finding.command.endswith(method) and row["cpu_seconds"] >= 0
        assert finding.low <= finding.effect <= finding.high
        assert finding.points_there or not finding.came_out


@pytest.mark.parametrize("method", POINTED)
def test_a_fast_check_points_where_it_did(method):
    finding = check(method)(FEW)
    assert finding.points_there, f"{finding.effect:.3g}, expected {finding.expected}: {finding.what}"


def test_a_finding_comes_out_when_all_of_its_interval_is_where_it_should_be():
    # mean 2, s = 1, n = 3: 2 ± 2.484
    assert not found("x", "", [1.0, 2.0, 3.0], above=0).came_out
    assert found("x", "", [1.0, 2.0, 3.0], above=-0.5, below=4.5).came_out
    assert found("x", "", [1.0, 2.0, 3.0], above=0, each=True).came_out
    assert not found("x", "", [1.0, 2.0, 3.0], above=0, each=True, also=("and more", False)).came_out
    assert found("x", "", 0.5, above=0.4, also=("more", True)).expected == "above 0.4; more"
    assert found("x", "", [1.0, 2.0, 3.0], above=0).points_there
