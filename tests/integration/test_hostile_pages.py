"""Hostile text in every place of a run that a page or a terminal shows, then the page opened in a real browser."""

import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from rich.console import Console

from llmrl import cli
from llmrl.comparison import compare, report
from llmrl.tracking.folder import RunFolder
from llmrl.tracking.live import Live
from llmrl.tracking.panel import Plain
from llmrl.tracking.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HTML = [
    "<script>document.title='SPRUNG'</script>",
    "</script><script>document.title='SPRUNG'</script>",
    "<img src=x onerror=\"document.title='SPRUNG'\">",
    "\"><svg onload=\"document.title='SPRUNG'\">",
    "'><body onload=document.title='SPRUNG'>",
    "<!--", "-->", "]]>", "</pre></main></body></html>", "<plaintext>", "<base href=//evil>",
    "<iframe srcdoc=\"<script>parent.document.title='SPRUNG'</script>\">",
    "<meta http-equiv=refresh content='0;url=data:text/html,SPRUNG'>",
    "<a href=\"javascript:document.title='SPRUNG'\" autofocus onfocus=\"document.title='SPRUNG'\">x</a>",
    "&lt;script&gt;", "&#60;script&#62;", "<think><script>document.title='SPRUNG'</script></think>",
    "${document.title='SPRUNG'}", "{{constructor.constructor('document.title=1')()}}",
    "\u2028</script>\u2029", "<style>*{display:none}</style>",
]  # fmt: skip
TERMINAL = [
    "\x1b[2J\x1b[H", "\x1b]0;title\x07", "\x1b]52;c;ZXZpbA==\x07", "\x1b]8;;http://evil\x1b\\x\x1b]8;;\x1b\\", "\x9b2J",
    "\x9d0;t\x9c", "\x1bP+q\x1b\\", "\x1b[?1049h", "\x08\x08\x08", "a\rb", "\x1b[6n", "\x00", "\x7f", "\u202egnp.exe",
    "\u2066x\u2069", "\u200fx", "\u061cx",
]  # fmt: skip
TEXT = "\n".join([*HTML, *TERMINAL])
FORBIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
METRIC = "eval/\"><img src=x onerror=document.title='SPRUNG'>/accuracy"


def planted(path):
    """A run whose every text is hostile."""
    run = RunFolder.create(path, f"name: {json.dumps(TEXT)}\n# {TEXT}\n")
    run.event("start", model=TEXT, **{TEXT: TEXT})
    run.event(TEXT, what=TEXT)
    record = {
        "prompt_id": TEXT, "prompt": TEXT, "messages": [{"role": TEXT, "content": TEXT}], "reference": TEXT,
        "columns": {TEXT: TEXT}, "feedback": TEXT, "text": TEXT, "ids": [1, 2], "truncated": False, "correct": True,
        "scores": {TEXT: {"value": 1.0, "feedback": TEXT, "evidence": {TEXT: TEXT}, "error": TEXT}},
    }  # fmt: skip
    for step in range(3):
        row = {"stage": TEXT, "step": step, "global_step": step, "reward/mean": 0.5, f"reward/{TEXT}": 0.1, METRIC: 0.5}
        run.append_metrics(row | {f"loss/{TEXT}": 1.0, "own/" + TEXT: float(step), "time/step": 1.0})
        run.write_rollouts(step, [record | {"reward": 0.1 * i, "advantage": 0.0} for i in range(2)])
        run.write_evaluation("held\"><script>document.title='SPRUNG'<\u2044script>"[:40], step, [record])
    return run


def opened(page, folder):
    """The page as the browser has it after its scripts ran, and what its console said."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}", "--enable-logging=stderr"]
    offline = ["--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking", "--virtual-time-budget=2000"]
    command = [CHROMIUM, *options, *offline, "--dump-dom", page.resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    return done.stdout, done.stderr


class Elements(HTMLParser):
    """Every tag of a document with its attributes."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def foreign(dom):
    """What in a page is not ours: other elements, handlers, addresses, more scripts than the page's own two."""
    elements = Elements()
    elements.feed(dom)
    own = "html head meta title style body main script header footer section article figure figcaption h1 h2 h3 p b i " \
        "span div pre code table tbody tr th td dl dt dd svg g path text circle rect line polyline title details " \
        "summary label input output button br"  # fmt: skip
    wrong = [tag for tag, _ in elements.found if tag not in own.split()]
    wrong += [n for _, some in elements.found for n in some if n.startswith("on") or n in ("src", "href", "srcdoc")]
    scripts = [tag for tag, _ in elements.found if tag == "script"]
    return wrong + scripts[2:]


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser")


@needs_browser
def test_hostile_text_in_a_report_stays_text(tmp_path):
    page = write_report(planted(tmp_path / "run").path)
    dom, console = opened(page, tmp_path / "profile")
    assert "<footer>Written by llmrl" in dom, console[-2000:]
    assert re.search(r"<title>([^<]*)</title>", dom).group(1) == "run" and not foreign(dom)
    assert "&lt;script&gt;document.title='SPRUNG'" in dom and not FORBIDDEN.search(page.read_text())


@needs_browser
def test_hostile_names_in_a_comparison_stay_text(tmp_path):
    rows = [{"stage": TEXT, "step": n, "global_step": n, METRIC: 0.5 + 0.01 * n} for n in range(3)]
    runs = {HTML[0]: {0: rows, 1: rows}, HTML[2]: {0: rows, 1: rows}}
    page = tmp_path / "comparison.html"
    page.write_text(report(compare(runs, METRIC), runs, [TEXT]))
    dom, _ = opened(page, tmp_path / "profile")
    assert re.search(r"<title>([^<]*)</title>", dom).group(1).startswith("eval/") and not foreign(dom)


@needs_browser
def test_the_browser_would_have_run_it(tmp_path):
    page = tmp_path / "open.html"
    page.write_text(f"<title>run</title><pre>{HTML[0]}</pre>")
    dom, _ = opened(page, tmp_path / "profile")
    assert "<title>SPRUNG</title>" in dom and foreign(f"<p>{TEXT}</p>")


def test_hostile_text_does_not_reach_the_terminal(tmp_path, capsys):
    run = planted(tmp_path / "run")
    stream = io.StringIO()
    plain = Plain({TEXT: 3}, stream)
    plain.stage(TEXT, 3)
    plain.message(TEXT)
    plain.step(run.metrics()[1], TEXT)
    screen = Console(file=io.StringIO(), force_terminal=True, width=120)
    live = Live({TEXT: 3}, screen)
    live.stage(TEXT, 3)
    live.message(TEXT)
    live.step(run.metrics()[1], TEXT)
    drawn = Console(file=io.StringIO(), force_terminal=False, width=120)
    drawn.print(live.render())
    live.close()
    for text in (stream.getvalue(), drawn.file.getvalue()):
        assert text and not FORBIDDEN.search(text)
    assert "\x1b]" not in screen.file.getvalue() and "\u202e" not in screen.file.getvalue()


def test_hostile_text_in_a_recipe_or_an_error_does_not_reach_the_terminal(tmp_path, capsys):
    path = tmp_path / "r.yaml"
    path.write_text(f"model: {{path: x}}\ndata: {{source: x, system: {json.dumps(TEXT)}}}\nalgorithm: {{name: grpo}}\n")
    assert cli.main(["show", str(path)]) == 0
    assert cli.main(["show", str(path), "algorithm.name=\u202e\u0085x", "\u202ex=1"]) == 2
    assert cli.main(["report", str(tmp_path / "\x1b[2J")]) == 2
    out, err = capsys.readouterr()
    assert out and err and not FORBIDDEN.search(out) and not FORBIDDEN.search(err)
