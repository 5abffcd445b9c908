import time

import pytest

from llmrl.tracking.text import duration, number, one_line, percent, plain_text, sparkline


@pytest.mark.parametrize(
    ("written", "seen"),
    [
        ("a\x1b[31mred\x1b[0m b", "ared b"),  # colours
        ("a\x1b[2J\x1b[Hb", "ab"),  # clear the screen
        ("\x1b]0;title\x07b", "b"),  # OSC, ended by BEL
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),  # OSC, ended by ST
        ("\x9b31mred", "red"),  # CSI as one C1 character
        ("\x9dtitle\x9cb", "b"),  # OSC as one C1 character
        ("\x1bPdevice\x1b\\b", "b"),  # DCS
        ("\x1bcb", "b"),  # reset of the terminal
        ("\x1b]52;c;never ended", "52;c;never ended"),  # nothing is swallowed where no end comes
        ("a\x08\x7f\x00\rb\x85c", "abc"),
        ("a\tb\r\nc\nd", "a\tb\nc\nd"),
        ("\u202egnp.exe\u2066x\u2028y", "gnp.exexy"),
        ("[bold]37[/bold] [link=x]", "[bold]37[/bold] [link=x]"),
        ("größe 数学 ∑", "größe 数学 ∑"),
        ("\x1b", ""),
        ("\x1b\x1b[31mx", "x"),
    ],
)
def test_plain_text(written, seen):
    assert plain_text(written) == seen


def test_no_control_character_is_left_behind_by_taking_one_away():
    text = "\x1b\x9b[\x1b[31m31m\x1b\x1b]]x\x07\x9d\x9d"
    assert not set(plain_text(text)) & {chr(c) for c in [*range(9), *range(11, 32), *range(127, 160)]}


def test_escapes_that_never_end_take_linear_time():
    started = time.perf_counter()
    plain_text("\x9d" * 200_000 + "\x1b]" * 200_000 + "\x1b[" * 200_000)
    assert time.perf_counter() - started < 5


def test_one_line():
    assert one_line("a\n\n b\t\x1b[1mc", 10) == "a b c"
    assert one_line("0123456789", 10) == "0123456789"
    assert one_line("0123456789x", 10) == "012 … 789x"


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        (0, "0"),
        (0.41234, "0.412"),
        (18.44, "18.4"),
        (999.6, "1,000"),
        (12400.4, "12,400"),
        (1.23e-5, "1.2e-05"),
        (-2.5, "-2.5"),
    ],
)
def test_number(value, seen):
    assert number(value) == seen


def test_percent_and_duration():
    assert percent(0.4141) == "41.4 %"
    assert [duration(s) for s in (31.4, 59.6, 252, 3780)] == ["31 s", "1 min 00 s", "4 min 12 s", "1 h 03 min"]


def test_sparkline():
    assert sparkline([], 5) == ""
    assert sparkline([2.0, 2.0], 5) == "▁▁"
    assert sparkline([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 7) == "▁▂▃▄▅▆▇"
    assert sparkline([0.0, 2.0, 3.0, 5.0], 2) == "▁▇"  # means of the halves: 1 and 4
