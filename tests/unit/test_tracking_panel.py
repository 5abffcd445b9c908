import io
import subprocess
import sys

import pytest
from rich.console import Console

from llmrl.tracking.live import Live
from llmrl.tracking.panel import Plain, Silent, make_panel, measurements


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def train(step, **values):
    return {"global_step": step, "stage": "grpo", "step": step, "reward/mean": step / 10, "time/step": 0.31} | values


MEASURED = {
    "global_step": 0,
    "stage": "grpo",
    "step": 0,
    "eval/math/accuracy": 0.883,
    "eval/math/low": 0.841,
    "eval/math/high": 0.915,
}


def plain_lines(steps):
    out = Terminal()
    panel = Plain({"grpo": steps}, stream=out)
    panel.stage("grpo", steps)
    for step in range(1, steps + 1):
        panel.step(train(step))
    panel.close()
    return out.getvalue().splitlines()


@pytest.mark.parametrize(
    ("mode", "terminal", "environment", "kind"),
    [
        ("auto", True, {}, Live),
        ("auto", True, {"NO_COLOR": "1"}, Plain),
        ("auto", True, {"TERM": "dumb"}, Plain),
        ("auto", False, {}, Plain),
        ("plain", True, {}, Plain),
        ("off", True, {}, Silent),
    ],
)
def test_the_panel_fits_where_it_is_shown(mode, terminal, environment, kind, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal() if terminal else io.StringIO())
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert type(make_panel(mode, {"grpo": 10})) is kind


def test_a_short_stage_prints_every_step_and_a_long_one_about_twenty():
    assert plain_lines(10)[:2] == ["stage grpo: 10 steps", "grpo  1/10  reward 0.1  0.31 s"]
    assert len(plain_lines(10)) == 11
    # the stage's own line, step 1, and every hundredth
    assert len(plain_lines(2000)) == 22
    assert plain_lines(2000)[-1].startswith("grpo 2000/2000  reward 200")


def test_a_slow_step_is_printed_at_once():
    out = Terminal()
    panel = Plain({"grpo": 2000}, stream=out)
    panel.stage("grpo", 2000)
    panel.step(train(7))
    assert "7/2000" not in out.getvalue()
    panel.printed -= 11
    panel.step(train(8))
    assert "8/2000" in out.getvalue()


def test_a_measurement_is_always_printed():
    out = Terminal()
    panel = Plain({"grpo": 2000}, stream=out)
    panel.stage("grpo", 2000)
    panel.step(MEASURED)
    assert "grpo    0/2000  math: accuracy 88.3 % (84.1 to 91.5)" in out.getvalue()
    assert measurements(train(1)) == {}
    assert measurements({"eval/a/b/accuracy": 0.5}) == {"a/b": "accuracy 50.0 %"}


def test_a_value_that_is_not_there_is_left_out():
    out = Terminal()
    panel = Plain({"grpo": 1}, stream=out)
    panel.stage("grpo", 1)
    panel.step(train(1, **{"loss/total": None, "policy/entropy": 0.5}))
    assert out.getvalue().splitlines()[-1] == "grpo 1/1  reward 0.1  entropy 0.5  0.31 s"


def test_a_closed_pipe_does_not_stop_the_run():
    class Gone(Terminal):
        def write(self, text):
            raise BrokenPipeError

    panel = Plain({"grpo": 1}, stream=Gone())
    panel.stage("grpo", 1)
    panel.step(train(1))


def test_a_terminal_that_cannot_show_a_character_still_gets_the_line():
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Plain({}, stream=out).message("größe → \x1b[2J1")
    assert out.buffer.getvalue() == b"gr??e ? 1\n"


def live(width=100):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    return Live({"sft": 20, "grpo": 10}, console=console), console


def shown(panel, width=100):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(panel.render())
    return console.file.getvalue()


def test_the_live_panel_shows_where_the_run_is():
    panel, _ = live()
    panel.stage("grpo", 10)
    panel.step(MEASURED)
    for step in range(1, 5):
        panel.step(train(step, **{"time/generate": 0.2, "time/update": 0.1, "rollout/no_spread": 0.25}), "37-2 → 35")
    panel.step(
        MEASURED
        | {"eval/math/accuracy": 0.95, "eval/math/low": 0.92, "eval/math/high": 0.97, "step": 4, "time/evaluate": 0.7}
    )
    text = shown(panel)
    panel.close()
    panel.close()
    for part in (
        "✓ sft",
        "● grpo",
        "4 / 10",
        "0.4",
        "▁▃▅▇",
        "25.0 %",
        "37-2 → 35",
        "generate\u00a00.2\u00a0s",
        "evaluate\u00a00.7\u00a0s",
    ):
        assert part in text
    assert "88.3 % (84.1 to 91.5)  →  95.0 % (92.0 to 97.0)" in text


def test_a_new_stage_starts_new_curves():
    panel, _ = live()
    panel.stage("sft", 20)
    panel.step({"global_step": 1, "stage": "sft", "step": 1, "loss/total": 4.5})
    panel.stage("grpo", 10)
    text = shown(panel)
    panel.close()
    assert "4.5" not in text
    assert "0 / 10" in text


def test_model_text_is_neither_markup_nor_escape():
    panel, console = live()
    panel.stage("grpo", 10)
    panel.step(train(1), "[bold red]x[/] \x1b]0;owned\x07 \x1b[2Jy\n\nz [/nonsense]")
    panel.message("[red]said[/red] \x1b[2J")
    panel.close()
    assert "[bold red]x[/] y z [/nonsense]" in shown(panel)
    assert "[red]said[/red]" in console.file.getvalue()
    assert "owned" not in console.file.getvalue()
    assert "\x1b[2J" not in console.file.getvalue()


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_the_live_panel_keeps_to_the_width(width):
    panel, _ = live(width)
    panel.stage("grpo", 10)
    panel.step(train(1, **{"time/update": 0.1}), "x" * 500)
    lines = shown(panel, width).splitlines()
    panel.close()
    assert max(map(len, lines)) <= width


def test_tracking_imports_nothing_heavy():
    code = (
        "import sys, llmrl.tracking.report, llmrl.tracking.live; print({'torch', 'numpy', 'yaml'} & sys.modules.keys())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"
