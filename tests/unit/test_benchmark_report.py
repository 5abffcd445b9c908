import pytest

from benchmarks.report import section, spread, table
from benchmarks.vs_trl import ratios, report


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("by hand\n\n<!-- a -->\nold\n<!-- /a -->\n\nmore by hand\n")
    return path


def test_a_section_is_replaced_and_what_stands_around_it_stays(page):
    for text in (r"new \1 \g<0>", "newer"):
        section("a", text, page)
        assert page.read_text() == f"by hand\n\n<!-- a -->\n{text}\n<!-- /a -->\n\nmore by hand\n"


def test_a_new_section_goes_to_the_end(page):
    section("b", "text", page)
    section("b", "text again", page)
    assert page.read_text().endswith("more by hand\n\n<!-- b -->\ntext again\n<!-- /b -->\n")


@pytest.mark.parametrize("broken", ["<!-- a -->", "<!-- /a -->", "<!-- /a --> <!-- a -->", "<!-- a --><!-- /a -->" * 2])
def test_a_broken_pair_of_marks_is_left_alone(page, broken):
    page.write_text(broken)
    with pytest.raises(ValueError, match="expected one pair"):
        section("a", "text", page)
    assert page.read_text() == broken


def test_tables_and_spreads():
    assert table(["x", "y"], [[1, "2"]]) == "| x | y |\n| --- | --- |\n| 1 | 2 |"
    assert spread([3.0, 1.0, 2.5, 2.0], 2) == "2.25 (1.00–3.00)"


def steps(*seconds):
    return [{"step": s, "generate": s / 2, "train": s / 4, "rest": s / 4, "length": 5.0} for s in seconds]


def test_a_ratio_is_of_the_fastest_trl_side_in_each_round():
    found = {
        "llmrl": [steps(1.0, 2.0, 9.0), steps(4.0)],
        "TRL, defaults": [steps(8.0), steps(8.0)],
        "TRL, tuned": [steps(6.0), steps(9.0)],
    }
    assert ratios(found) == [3.0, 2.0]
    text = report("A", 1e-7, found)
    assert "| llmrl | 3.000 (1.000–9.000) | 1.500 (0.500–4.500) |" in text and "2.50 (2.00–3.00)" in text
