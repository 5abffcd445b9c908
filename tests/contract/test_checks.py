"""docs/checks.md says which test holds which check; a test that was renamed or dropped must not stay named there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_that_the_table_of_checks_names_is_there():
    named = re.findall(r"`(?:(test_\w+)::)?(test_\w+)`", (ROOT / "docs" / "checks.md").read_text())
    files = {p.stem: p.read_text() for p in (ROOT / "tests").rglob("test_*.py")}
    known = {test for text in files.values() for test in re.findall(r"^(?:async )?def (test_\w+)", text, re.MULTILINE)}
    assert len(named) > 60
    assert not [name for file, name in named if name not in known | files.keys() or (file and file not in files)]
    assert not [(f, n) for f, n in named if f and not re.search(rf"def {n}\b", files[f])]


def test_every_number_is_in_the_table_once():
    rows = re.findall(r"^\| (\d+) \|", (ROOT / "docs" / "checks.md").read_text(), re.MULTILINE)
    assert rows == [str(n) for n in range(1, 33)]
