"""A profiled run: what it writes, that its times add up, and that it trains the same model."""

from __future__ import annotations

import gzip
import json
import re

import pytest
from helpers import trained, varied, weights_of

from llmrl.clock import Clock, span, watched
from llmrl.training.profile import Plan, Spans, parts, plan

GRPO = {"algorithm": {"name": "grpo"}, "profile": True}
LINE = re.compile(r"^( *)(\S+) +([\d.]+) +([\d.]+)( +[\d,]+)?$")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run that is profiled, and the same one that is not."""
    out = {}
    for name, on in {"watched": True, "plain": False}.items():
        sections = GRPO | {"profile": on, "training": {"steps": 8, "learning_rate": 1e-2}}
        out[name] = trained(tmp_path_factory.mktemp(name), functions=[varied], **sections).folder
    return out


def test_the_trace_is_json_and_names_the_parts_of_one_step(runs):
    with gzip.open(runs["watched"] / "profile" / "trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    names = [event.get("name") for event in events if event.get("cat") == "user_annotation"]
    found = {"step", "generate", "generate/prefill", "generate/sample", "generate/decode", "score", "passes", "update",
             "update/forward", "update/backward", "update/optimizer", "sync"}  # fmt: skip
    assert found <= set(names)
    assert names.count("step") == 1
    assert any("linear" in str(event.get("name")) for event in events)


def test_the_parts_add_up_to_the_step(runs):
    text = (runs["watched"] / "profile" / "summary.txt").read_text()
    table, *others = text.split("\n\n")
    head, *lines = table.splitlines()
    assert head.startswith("one of 3 timed steps")
    rows = [(len(m[1]) // 2, m[2], float(m[3]), float(m[4])) for m in map(LINE.match, lines)]
    assert [name for depth, name, *_ in rows if depth == 1] == ["generate", "score", "passes", "update", "sync", "rest"]
    assert rows[0][1] == "step" and rows[0][3] == 100.0

    def sums_up(place: int) -> None:
        depth, _, spent, percent = rows[place]
        below = [i for i in range(place + 1, len(rows)) if rows[i][0] == depth + 1]
        inside = [i for i in below if all(rows[j][0] > depth for j in range(place + 1, i))]
        if inside:
            assert sum(rows[i][2] for i in inside) == pytest.approx(spent, abs=1e-4 * len(inside))
            assert sum(rows[i][3] for i in inside) == pytest.approx(percent, abs=0.1 * len(inside))
        for i in inside:
            sums_up(i)

    sums_up(0)
    assert others[0].startswith("peak memory: ")
    assert "aten::" in others[1] and "loop.py" not in others[1]
    assert others[2].startswith("functions of another step")


def test_it_trains_the_same_model_and_a_run_without_it_writes_nothing(runs):
    assert weights_of(runs["watched"]) == weights_of(runs["plain"])
    assert not (runs["plain"] / "profile").exists()


def test_a_run_of_one_step_is_profiled_too(tmp_path):
    folder = trained(tmp_path, functions=[varied], training={"steps": 1}, **GRPO).folder
    assert (folder / "profile" / "trace.json.gz").exists()
    assert (folder / "profile" / "summary.txt").read_text().startswith("one of 1 timed step ")


def test_each_stage_of_several_has_its_own(tmp_path):
    stages = [{"name": "a"}, {"name": "b"}]
    folder = trained(tmp_path, functions=[varied], training={"steps": 1}, stages=stages, **GRPO).folder
    assert sorted(path.parent.name for path in folder.glob("profile/*/summary.txt")) == ["a", "b"]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(1, Plan(range(1), 0, 0)), (2, Plan(range(1, 2), 1, 1)), (4, Plan(range(2, 3), 3, 3)),
     (5, Plan(range(2, 3), 3, 4)), (7, Plan(range(2, 5), 5, 6)), (900, Plan(range(2, 5), 5, 6))],
)  # fmt: skip
def test_short_runs_give_one_step_several_instruments(steps, expected):
    assert plan(steps) == expected


def test_spans_nest_and_nobody_pays_for_them_unwatched():
    spans = Spans(synchronise=False)
    with watched(spans), spans("step"):
        for _ in range(2):
            with Clock()("generate"), span("decode"):
                pass
    assert list(spans.seconds) == [("generate", "decode"), ("generate",), ()]
    with span("decode"):
        pass
    assert len(spans.seconds) == 3


def test_a_part_that_fails_leaves_no_open_span():
    spans = Spans(synchronise=False)
    with pytest.raises(ValueError), watched(spans), spans("step"), span("generate"):
        raise ValueError
    assert spans.opened == [] and set(spans.seconds) == {(), ("generate",)}


def test_tokens_are_those_that_a_part_works_on():
    seconds = {(): 10.0, ("generate",): 4.0, ("generate", "prefill"): 1.0, ("update",): 2.0, ("sync",): 1.0}
    rows = {
        name: (spent, rate) for _, name, spent, rate in parts(seconds, {"prompts": 5, "generated": 8, "trained": 6})
    }
    # generate 8 / 4, prefill 5 / 1, update 6 / 2; of the ten seconds 4 + 2 + 1 are in a part
    assert rows["generate"] == (4.0, 2.0) and rows["prefill"] == (1.0, 5.0) and rows["update"] == (2.0, 3.0)
    assert rows["sync"] == (1.0, None) and rows["rest"] == (3.0, None)
