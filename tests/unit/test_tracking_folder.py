import json
import math

import pytest

from llmrl.errors import LlmrlError
from llmrl.tracking.folder import RunFolder
from llmrl.tracking.jsonl import append_line, plain, read_lines, write_lines
from llmrl.tracking.versions import versions


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "run", "model: {path: here}\n")


def row(stage, step, global_step, **values):
    return {"global_step": global_step, "stage": stage, "step": step} | values


def test_create_keeps_the_recipe_and_what_the_run_stood_on(folder):
    assert RunFolder.open(folder.path).recipe() == "model: {path: here}\n"
    assert {"python", "platform", "packages", "commit"} <= folder.versions().keys()
    assert folder.versions()["packages"]["rich"]


def test_commit_is_absent_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert versions()["commit"] is None


def test_a_run_is_never_overwritten_and_a_missing_one_is_named(folder, tmp_path):
    folder.append_metrics(row("grpo", 1, 1))
    with pytest.raises(LlmrlError, match="already holds a run"):
        RunFolder.create(folder.path, "other")
    with pytest.raises(LlmrlError, match="no recipe.yaml"):
        RunFolder.open(tmp_path / "nowhere")


def test_numbers_that_are_not_finite_become_null_and_are_counted(folder):
    folder.append_metrics(row("grpo", 1, 1, a=math.nan, b=math.inf, c=0.5))
    line = (folder.path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail) == row("grpo", 1, 1, a=None, b=None, c=0.5) | {
        "metrics/not_finite": 2
    }
    folder.append_metrics(row("grpo", 2, 2, a=1.0))
    assert "metrics/not_finite" not in folder.metrics()[1]


def test_anything_becomes_plain_data():
    class Scalar:
        def tolist(self):
            return math.nan

    assert plain({"a": (1, {2}, None, True), 3: Scalar()}) == {"a": [1, "{2}", None, True], "3": None}


def test_a_torn_last_line_is_passed_over_and_removed_by_the_next_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_line(path, {"step": 1})
    with open(path, "ab") as file:
        file.write(b'{"step": 2, "rew')
    assert read_lines(path) == [{"step": 1}]
    append_line(path, {"step": 2})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_first_line_that_was_torn_leaves_nothing(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'{"st')
    append_line(tmp_path / "rows.jsonl", {"step": 1})
    assert read_lines(tmp_path / "rows.jsonl") == [{"step": 1}]


def test_a_broken_line_in_the_middle_is_an_error_with_its_number(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(LlmrlError, match="line 2"):
        read_lines(tmp_path / "rows.jsonl")


def test_line_separators_in_a_text_do_not_split_its_row(tmp_path):
    write_lines(tmp_path / "rows.jsonl", [{"text": "a\u2028b\x85c\nd\ud800"}])
    assert read_lines(tmp_path / "rows.jsonl") == [{"text": "a\u2028b\x85c\nd\ud800"}]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    write_lines(tmp_path / "rows.jsonl", [{"step": 1}])

    def broken():
        yield {"step": 2}
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_lines(tmp_path / "rows.jsonl", broken())
    assert read_lines(tmp_path / "rows.jsonl") == [{"step": 1}]


def test_rollouts_are_found_by_step(folder):
    for step in (10, 2, 1_000_000):
        folder.write_rollouts(step, [{"text": str(step)}])
    assert (folder.path / "rollouts" / "step_000002.jsonl").exists()
    assert folder.steps_with_rollouts() == [2, 10, 1_000_000]
    assert folder.rollouts(10) == [{"text": "10"}]
    assert folder.rollouts(11) == []


def test_evaluations_are_found_by_name_and_step(folder):
    folder.write_evaluation("math", 100, [{"correct": True}])
    folder.write_evaluation("math", 0, [{"correct": False}])
    assert folder.evaluations() == {"math": [0, 100]}
    assert folder.evaluation("math", 0) == [{"correct": False}]
    with pytest.raises(LlmrlError, match="cannot name a folder"):
        folder.write_evaluation("../outside", 0, [])


def test_events_carry_their_time_and_facts(folder):
    folder.event("resume", checkpoint="000010")
    event = folder.events()[0]
    assert (event["kind"], event["checkpoint"], event["time"][-6:]) == ("resume", "000010", "+00:00")


def fill(folder):
    folder.append_metrics(row("sft", 0, 0))
    for step in (1, 2):
        folder.append_metrics(row("sft", step, step))
    folder.append_metrics(row("grpo", 0, 2))  # the measurement before the second stage
    for step in (1, 2, 3):
        folder.append_metrics(row("grpo", step, 2 + step))
        folder.write_rollouts(2 + step, [])
        folder.write_evaluation("math", 2 + step, [])


def places(folder):
    return [(r["stage"], r["step"]) for r in folder.metrics()]


def test_truncating_drops_what_came_after_the_checkpoint(folder):
    fill(folder)
    folder.truncate_metrics("grpo", 4)
    assert places(folder) == [("sft", 0), ("sft", 1), ("sft", 2), ("grpo", 0), ("grpo", 1), ("grpo", 2)]
    assert folder.steps_with_rollouts() == [3, 4]
    assert folder.evaluations() == {"math": [3, 4]}


def test_truncating_at_the_end_of_a_stage_drops_the_next_ones_first_measurement(folder):
    fill(folder)
    folder.truncate_metrics("sft", 2)
    assert places(folder) == [("sft", 0), ("sft", 1), ("sft", 2)]
    folder.truncate_metrics("sft", -1)
    assert places(folder) == []


def test_truncating_keeps_the_stage_before_where_the_next_has_no_rows_yet(folder):
    fill(folder)
    folder.truncate_metrics("sft", 2)
    folder.truncate_metrics("grpo", 2)
    assert places(folder) == [("sft", 0), ("sft", 1), ("sft", 2)]
