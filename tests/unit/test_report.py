import json
import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from llmrl.errors import LlmrlError
from llmrl.tracking.curves import figures, stages_of
from llmrl.tracking.folder import RunFolder
from llmrl.tracking.page import embedded
from llmrl.tracking.report import write_report
from llmrl.tracking.samples import evenly, shown
from llmrl.tracking.svg import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MAX_POINTS,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    Point,
    Series,
    Stage,
    intervals,
    lines,
    place,
    round_step,
    smooth,
    stacked,
    thin,
)

HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>\x1b]0;owned\x07\x1b[31m\u2028\"'&<think>t</think>"
)


def point(step, value, stage=0):
    return Point(stage, step, value, value, value, step)


def row(stage, step, global_step, **values):
    return {"global_step": global_step, "stage": stage, "step": step} | values


def measured(stage, step, global_step, accuracy, name="math"):
    key = f"eval/{name}/"
    values = {"accuracy": accuracy, "low": accuracy - 0.05, "high": accuracy + 0.05, "num": 256, "mean_length": 20.0}
    return row(stage, step, global_step, **{key + metric: value for metric, value in values.items()})


def record(prompt, text="4", *, reward=1.0, **more):
    scores = {"answer": {"value": reward, "feedback": f"Read {text}.", "evidence": {"found": text}, "error": None}}
    return {"prompt_id": prompt, "prompt": f"asked {prompt}", "text": text, "ids": [1, 2], "reward": reward} | (
        {"advantage": 0.5, "scores": scores, "truncated": False, "kept": True, "feedback": None} | more
    )


@pytest.fixture
def run(tmp_path):
    run = RunFolder.create(tmp_path / "demo", "seed: 0  # fixed\nmodel:\n  path: here\n")
    run.event("start", model="tiny")
    run.append_metrics(measured("sft", 0, 0, 0.10))
    run.append_metrics(row("sft", 1, 1, **{"loss/total": 4.0, "time/step": 2.0}))
    run.append_metrics(measured("sft", 1, 1, 0.40))
    for step in (1, 2):
        values = {"reward/mean": step / 2, "reward/answer": step / 2, "own/metric": 7.0, "time/step": 3.0}
        run.append_metrics(row("grpo", step, 1 + step, **values))
    run.append_metrics(measured("grpo", 2, 3, 0.90))
    return run


class Page(HTMLParser):
    """Checks that every element is closed, and collects the elements and the visible text."""

    def __init__(self, html):
        super().__init__()
        self.open, self.elements, self.words = [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" not in self.open and "style" not in self.open:
            self.words.append(data)

    def text(self):
        return "".join(self.words)


def report(run):
    html = write_report(run.path).read_text(encoding="utf-8")
    return html, Page(html)


def test_the_report_says_what_was_run_and_what_came_of_it(run):
    text = report(run)[1].text()
    for part in ("demo", "sft 1 steps → grpo 2 steps", "model tiny", "10.0 %→90.0 %+80.0 points", "256 problems"):
        assert part in text
    for part in ("before", "after sft", "after grpo", "seed: 0  # fixed", "name=demo-again", "rich", "8 s", "0.5 → 1"):
        assert part in text


def test_the_report_says_what_accuracy_was_bought_with(run):
    for step, entropy in enumerate((1.0, 0.5, 0.2, 0.1), 3):
        run.append_metrics(row("grpo", step, 1 + step, **{"policy/entropy": entropy}))
        assert "it followed" not in report(run)[1].text()  # three points on a line say nothing
        run.append_metrics(measured("grpo", step, 1 + step, 0.8 - 0.15 * math.exp(entropy)))
    said = report(run)[1].text()
    assert "In grpo it followed 0.8 - 0.15 · exp(entropy) with R² 1.00 over 4 measurements: 65.0 % where" in said


def test_the_report_loads_nothing(run):
    html, page = report(run)
    assert not [a for _, attributes in page.elements for a in attributes if a in ("src", "href", "onclick", "onerror")]
    assert "url(" not in html and "@import" not in html
    policy = next(a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a)
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy


def test_model_text_stays_text(run):
    run.event("note", text=HOSTILE)
    run.append_metrics(row("grpo", 3, 4, **{f"reward/{HOSTILE}": 1.0, "reward/answer": 0.0}))
    for step in (0, 3):
        answer = record(HOSTILE, HOSTILE, correct=step > 0, feedback=HOSTILE)
        run.write_evaluation("math", step, [answer | {"prompt": HOSTILE}])
    failed = record("a", HOSTILE, reward=0.0) | {"scores": {HOSTILE: {"value": None, "error": HOSTILE}}}
    run.write_rollouts(4, [record("b", HOSTILE), failed])
    html, page = report(run)
    assert [tag for tag, _ in page.elements if tag in ("script", "img")] == ["script", "script"]
    assert not any("onerror" in attributes for _, attributes in page.elements)
    assert "<img src=x onerror=alert(2)>" in page.text()
    assert not {"\x1b", "\x07", "\u2028"} & set(html)
    assert page.text().count("owned") == page.text().count("\\u001b]0;owned")  # only where JSON spells it out


def test_embedded_json_cannot_leave_its_element():
    text = embedded({"a": "</script><!--\u2028\u2029"})
    assert "<" not in text and "\u2028" not in text and "\u2029" not in text
    assert json.loads(text) == {"a": "</script><!--\u2028\u2029"}


def test_answers_before_and_after_stand_side_by_side(run):
    run.write_evaluation(
        "math", 0, [record(p, f"early {p}", correct=c) for p, c in (("p", False), ("q", True), ("r", False))]
    )
    run.write_evaluation("math", 1, [record(p, f"middle {p}", correct=True) for p in "pq"])
    run.write_evaluation(
        "math", 3, [record(p, f"late {p}", correct=c) for p, c in (("p", True), ("q", False), ("r", None))]
    )
    html, page = report(run)
    text = page.text()
    assert "1 solved by training · 1 lost in training" in text
    assert text.index("early p") < text.index("middle p") < text.index("late p") < text.index("early q")
    assert "early r" not in text  # the last answer could not be judged
    assert "before training" in text and "sft, step 1" in text and "grpo, step 2" in text
    frames = [attributes for tag, attributes in page.elements if attributes.get("class") == "frame"]
    assert ["hidden" in attributes for attributes in frames] == [True, False] * 2


def test_the_best_and_the_worst_of_a_step(run):
    rollouts = [record("p", f"worth {r}", reward=r, truncated=r == 0.2) for r in (0.5, 0.9, 0.2)]
    rollouts.append(record("p", "failed", reward=None) | {"reward": None, "kept": False})
    run.write_rollouts(3, rollouts)
    text = report(run)[1].text()
    assert "grpo, step 2: 4 rollouts, 3 trained on, 1 truncated." in text
    assert "worth 0.9" in text and "worth 0.2" in text and "worth 0.5" not in text


def test_demonstrations_have_no_best(run):
    run.write_rollouts(1, [record("p", "shown", reward=None, scores={}, advantage=None), record("q", "too", scores={})])
    text = report(run)[1].text()
    assert text.count("example") == 2 and "highest reward" not in text


def test_a_run_of_nothing_yet_has_a_report(tmp_path):
    run = RunFolder.create(tmp_path / "empty", "model: {}\n")
    assert "No step has been finished yet." in report(run)[1].text()
    with pytest.raises(LlmrlError, match="holds no run"):
        write_report(tmp_path)


def test_a_long_run_stays_below_two_megabytes(tmp_path):
    run = RunFolder.create(tmp_path / "long", "model: {}\n" * 100)
    names = ["reward/mean", "reward/a", "reward/b", "rollout/length", "policy/entropy", "loss/total", "loss/policy"]
    names += ["kl/old", "kl/ref", "gradient/norm", "tokens_per_second/generate", "time/generate", "time/update", "x/y"]
    lines_ = [
        json.dumps(row("grpo", step, step, **{name: (step * 7919 % 1000) / 997 for name in names}))
        for step in range(1, 1001)
    ]
    (run.path / "metrics.jsonl").write_text("\n".join(lines_) + "\n")
    for step in range(0, 1001, 50):
        run.write_evaluation("math", step, [record(str(i), "word " * 2000, correct=i % 2 == 0) for i in range(20)])
        run.write_rollouts(step, [record(str(i), "word " * 2000, reward=i / 8) for i in range(8)])
    assert 200_000 < write_report(run.path).stat().st_size < 2_000_000


def test_shown_escapes_and_leaves_out_the_middle():
    assert shown('<b> & \x1b[1m"') == "&lt;b&gt; &amp; &quot;"
    assert shown("<think>a</think>b") == '<span class="thought">&lt;think&gt;a&lt;/think&gt;</span>b'
    assert shown("a" * 20 + "b" * 10, 12) == "aaaaaaaa\n… 18 characters left out …\nbbbb"


def test_evenly_keeps_both_ends():
    assert evenly(range(5), 9) == [0, 1, 2, 3, 4]
    assert evenly(range(101), 3) == [0, 50, 100]


def test_every_metric_is_drawn_once(run):
    known, others = figures(run.metrics())
    titles = ["Accuracy on held-out problems", "Reward", "Scores", "Held-out answer length", "Loss, sft"]
    assert [figure.title for figure in known] == titles
    assert [figure.title for figure in others] == ["own/metric"]


def test_losses_of_two_stages_do_not_share_a_scale():
    rows = [row("sft", 1, 1, **{"loss/total": 4.0}), row("grpo", 1, 2, **{"loss/total": 0.01, "scorer/errors": 0})]
    assert [figure.title for figure in figures(rows)[0]] == ["Loss, sft", "Loss, grpo"]
    rows.append(row("grpo", 2, 3, **{"scorer/errors": 2}))
    assert [figure.title for figure in figures(rows)[0]][-1] == "Scorer errors"


def test_stages_come_in_order_with_the_steps_they_reached():
    rows = [row("sft", 0, 0), row("sft", 5, 5), row("grpo", 0, 5), row("grpo", 2, 7)]
    assert stages_of(rows) == [Stage("sft", 5), Stage("grpo", 2)]


def test_every_stage_has_an_equal_part_of_the_width():
    stages = [Stage("sft", 2000), Stage("grpo", 60)]
    middle, end = LEFT + (WIDTH - LEFT - RIGHT) / 2, WIDTH - RIGHT
    assert [place(point(step, 0.0, stage), stages) for stage, step in ((0, 0), (0, 2000), (1, 0), (1, 60))] == [
        LEFT,
        middle,
        middle,
        end,
    ]


def test_thin_keeps_means_and_ranges():
    stages = [Stage("a", 2 * MAX_POINTS)]
    points = [point(0, 9.0)] + [point(step, float(step % 2)) for step in range(1, 2 * MAX_POINTS + 1)]
    thinned = thin(points, stages)
    assert len(thinned) == MAX_POINTS + 1
    assert thinned[0] == point(0, 9.0)  # the measurement before the first step stays its own
    assert thinned[1] == Point(0, 2, 0.5, 0.0, 1.0, 1)  # steps 1 and 2, worth 1 and 0
    assert thin(points[:5], [Stage("a", 4)]) == points[:5]


def test_smooth_averages_neighbours_of_the_same_stage_and_leaves_the_ends():
    points = [point(step, float(step == 20)) for step in range(80)] + [point(0, 5.0, stage=1)]
    smoothed = [p.value for p in smooth(points)]
    # 80 points: two neighbours on each side, so a lone 1 becomes 1/5 of itself at five places
    assert smoothed[17:24] == pytest.approx([0, 0.2, 0.2, 0.2, 0.2, 0.2, 0])
    assert (smoothed[0], smoothed[-1]) == (0.0, 5.0)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.3, 1.02, [0, 0.25, 0.5, 0.75, 1.0, 1.25]),
        (95.0, 99.0, [95, 96, 97, 98, 99]),
        (-0.012, 0.03, [-0.02, -0.01, 0, 0.01, 0.02, 0.03]),
        (0.0, 0.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (3.0, 3.0, [1, 2, 3, 4, 5]),
        (5e-324, 5e-324, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-5e-324, 0.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
    ],
)
def test_ticks_are_round(low, high, ticks):
    axis = Axis.linear(low, high)
    assert axis.ticks == pytest.approx(ticks)
    assert axis.y(axis.low) == HEIGHT - BOTTOM and axis.y(axis.high) == TOP


def test_logarithmic_ticks_are_powers_of_ten():
    axis = Axis.logarithmic([2e-6, 3e-4])
    assert axis.ticks == pytest.approx([1e-6, 1e-5, 1e-4, 1e-3])
    assert axis.y(1e-6) == HEIGHT - BOTTOM and axis.y(1e-3) == TOP
    assert [round_step(size) for size in (1.0, 1.1, 2.2, 26.0, 0.06)] == [1, 2, 2.5, 50, 0.1]


def test_a_line_goes_through_its_points():
    chart = lines([Series("a", [point(0, 0.0), point(10, 1.0)])], [Stage("x", 10)], label="<label>", limits=(0, 1))
    drawn = ElementTree.fromstring(chart.svg)
    path = next(p.get("d") for p in drawn.iter("path") if p.get("class") == "line")
    assert path == f"M{LEFT} {HEIGHT - BOTTOM}L{WIDTH - RIGHT} {TOP}"
    assert chart.hover["x"] == [LEFT, WIDTH - RIGHT]
    assert chart.hover["at"] == ["step 0", "step 10"]
    assert chart.hover["series"][0]["text"] == ["0", "1"]


def test_a_line_does_not_run_across_stages():
    series = [Series("a", [point(1, 1.0), point(2, 1.0), point(1, 2.0, stage=1), point(2, 2.0, stage=1)])]
    chart = lines(series, [Stage("sft", 2), Stage("grpo", 2)], label="loss")
    assert chart.svg.count('class="line"') == 2 and chart.svg.count('class="boundary"') == 1
    assert chart.hover["at"][2] == "grpo, step 1"


def test_areas_stand_on_each_other():
    series = [Series("a", [point(1, 1.0), point(2, 1.0)]), Series("b", [point(2, 4.0)])]
    chart = stacked(series, [Stage("x", 2)], label="seconds")
    top = Axis.linear(0, 5)
    assert chart.hover["series"][1]["y"] == [top.y(1.0), top.y(5.0)]
    assert chart.hover["series"][1]["text"] == [None, "4"]


def test_intervals_are_drawn_to_scale():
    drawn = ElementTree.fromstring(intervals([("before", 0.0, None, None), ("after <x>", 0.5, 0.25, 1.0)]))
    xs = [float(c.get("cx")) for c in drawn.iter("circle")]
    bar = next(p.get("d") for p in drawn.iter("path") if p.get("class") == "interval")
    low, high = (float(x) for x in re.fullmatch(r"M([\d.]+) [\d.]+H([\d.]+)", bar).groups())
    assert (high - xs[0]) == pytest.approx(2 * (xs[1] - xs[0])) == pytest.approx(4 * (low - xs[0]))
