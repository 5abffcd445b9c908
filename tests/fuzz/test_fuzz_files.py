"""Files of a run, of data and of checkpoints that are damaged or made up: an LlmrlError, never a traceback or a hang."""

import json
import shutil
import struct
from types import SimpleNamespace

import pytest
import torch
from fuzzing import NUMBERS, PLAIN, TEXTS, changed, damaged, inputs, survives
from hypothesis import given
from hypothesis import strategies as st

from llmrl.completions import header_of, read_groups
from llmrl.config import Data
from llmrl.data.prompts import load
from llmrl.data.read import read_rows
from llmrl.data.tokenizer import load_tokenizer
from llmrl.policy.sharding import Replicated
from llmrl.results import compare
from llmrl.tracking.folder import RunFolder
from llmrl.tracking.report import write_report
from llmrl.tracking.summary import summary
from llmrl.training import checkpoint

TURNS = [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}]
ROWS = [
    {"prompt": "1+1=", "reference": "2"},
    {"prompt": "1+1=", "completion": "2"},
    {"prompt": TURNS[:1], "completion": TURNS[1:], "feedback": "good", "score": 1.0},
    {"messages": TURNS},
    {"prompt": "1+1=", "chosen": "2", "rejected": "3", "margin": 0.5},
    {"chosen": TURNS, "rejected": [TURNS[0], {"role": "assistant", "content": "3"}]},
    {"prompt": "1+1=", "steps": ["1", "2"], "labels": [1, 0]},
    {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
    {"text": "1+1=2"},
]
OPTIONS = [{}, {"user": "{prompt}: {text}"}, {"system": "{prompt}"}, {"columns": {"prompt": "text"}}, {"format": "hh"}]
OPTIONS += [{"format": "pairs"}, {"format": "steps"}, {"format": "feedback"}, {"format": "demonstration"}]
ANSWER = {"prompt_id": "a", "prompt": "1+1=", "messages": TURNS[:1], "reference": "2", "columns": {}, "feedback": None}
ANSWER |= {
    "text": "2",
    "ids": [1, 2],
    "truncated": False,
    "scores": {"s": {"value": 1.0, "feedback": None, "error": None}},
}
METRICS = {"stage": "a", "step": 1, "global_step": 1, "reward/mean": 0.5, "eval/x/accuracy": 0.5, "eval/x/low": 0.1}
METRICS |= {
    "eval/x/high": 0.9,
    "eval/x/num": 8,
    "loss/total": 0.1,
    "time/step": 1.0,
    "time/generate": 0.5,
    "policy/entropy": 1.0,
}
METRICS |= {"rollout/logprob_gap_mean": 1e-6, "rollout/logprob_gap_max": 1e-5, "own": 3.0}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def tokenizer(tiny_folder):
    return load_tokenizer(tiny_folder)


def lines(*rows):
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def given_data(strategy):
    return given(strategy, st.sampled_from(OPTIONS), st.booleans())


@inputs(1500)
@given_data(st.sampled_from(ROWS).flatmap(changed))
def test_changed_rows(place, tokenizer, row, options, answers):
    file = place / "rows.jsonl"
    file.write_bytes(lines(row, *ROWS[:2]))
    survives(lambda: load(Data(source=str(file), **options), tokenizer, seed=0, answers=answers))


@inputs(1200)
@given_data(damaged(lines(*ROWS)))
def test_damaged_rows(place, tokenizer, content, options, answers):
    file = place / "rows.jsonl"
    file.write_bytes(content)
    survives(lambda: load(Data(source=str(file), **options), tokenizer, seed=0, answers=answers))


@inputs(600)
@given(
    damaged(lines({"llmrl": "llmrl/completions@1"}, ANSWER, ANSWER))
    | changed(ANSWER).map(lambda row: lines(row, ANSWER))
)
def test_answers_to_be_scored(place, content):
    file = place / "answers.jsonl"
    file.write_bytes(content)
    survives(lambda: (header_of(file), list(read_groups(file))))


@inputs(400)
@given(*2 * [damaged(lines({"llmrl": "x", "name": "n", "setting": {"scorers": []}}, {"prompt_id": "a", "value": 1.0}))])
def test_results_to_be_compared(place, first, second):
    for name, content in (("a", first), ("b", second)):
        (place / name).mkdir(exist_ok=True)
        (place / name / "scores.jsonl").write_bytes(content)
    survives(compare, place / "a", place / "b")


@pytest.fixture(scope="module")
def run(place):
    folder = RunFolder.create(place / "run", "name: x\n")
    folder.event("start", model="m")
    folder.append_metrics(METRICS)
    folder.write_rollouts(1, [ANSWER | {"reward": 0.5}])
    folder.write_evaluation("x", 1, [ANSWER | {"correct": True}])
    return folder


def read(folder):
    for step in folder.steps_with_rollouts():
        folder.rollouts(step)
    folder.truncate_metrics("a", 0)
    return folder.metrics(), folder.events(), folder.versions(), folder.recipe(), summary(folder)


@inputs(500)
@given(
    st.lists(changed(METRICS), max_size=3),
    st.lists(st.dictionaries(st.sampled_from(list(METRICS)), NUMBERS), max_size=3),
)
def test_metrics_are_drawn_or_refused(run, place, rows, numbers):
    whole = [METRICS | {k: v for k, v in row.items() if k not in ("stage", "step", "global_step")} for row in numbers]
    (run.path / "metrics.jsonl").write_bytes(lines(METRICS, *whole, *rows, METRICS | {"step": 2, "global_step": 2}))
    survives(write_report, run.path)


NAMES = ["metrics.jsonl", "events.jsonl", "versions.json", "recipe.yaml", "rollouts/step_000001.jsonl"]
NAMES += ["evaluations/x/000001.jsonl"]


@inputs(500)
@given(st.sampled_from(NAMES), st.data())
def test_a_damaged_run(run, place, name, data):
    broken = place / "broken"
    shutil.rmtree(broken, ignore_errors=True)
    shutil.copytree(run.path, broken)
    whole = (broken / name).read_bytes()
    (broken / name).write_bytes(data.draw(damaged(whole)))
    survives(write_report, broken)
    survives(read, RunFolder(broken))


@inputs(200)
@given(TEXTS.filter(lambda name: name.isprintable()), PLAIN)
def test_records_with_anything_in_them(run, place, name, value):
    records = [ANSWER | {key: value} for key in ANSWER] + [ANSWER | {"reward": value, "correct": value, name: value}]
    for record in records[:: 1 + len(name) % 3]:
        (run.path / "rollouts" / "step_000001.jsonl").write_bytes(lines(record))
        (run.path / "evaluations" / "x" / "000001.jsonl").write_bytes(lines(record))
        survives(write_report, run.path)


NUMBERS_OF_STATE = {"a/step": 1.0}
STATE = {
    "stage": 0,
    "step": 1,
    "global_step": 1,
    "version": 1,
    "prompts": "x",
    "recipe": {},
    "optimizer": NUMBERS_OF_STATE,
}
HEADER = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "__metadata__": {"format": "pt"}}
ODD_NAMES = ["../x", "/dev/zero", "/dev/stdin", "a/b", "", ".", "..", "\x00", "x" * 5000]


def safetensors(header, payload=b"\0" * 8):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + payload


def manifest_of(folder):
    names = (checkpoint.WEIGHTS, checkpoint.MOMENTS, checkpoint.STATE)
    files = {n: {"sha256": checkpoint.digest(folder / n), "size": (folder / n).stat().st_size} for n in names}
    return {"format": checkpoint.FORMAT, "global_step": 1, "files": files}


@pytest.fixture
def saved(place):
    folder = place / "checkpoint-1"
    folder.mkdir(exist_ok=True)
    (folder / checkpoint.STATE).write_text(json.dumps(STATE))
    (folder / checkpoint.WEIGHTS).write_bytes(safetensors(HEADER))
    (folder / checkpoint.MOMENTS).write_bytes(safetensors({"a/exp_avg": HEADER["a"]}))
    (folder / checkpoint.MANIFEST).write_text(json.dumps(manifest_of(folder)))
    return folder


def put_in_place(folder):
    parameter = torch.nn.Parameter(torch.ones(2))
    policy = SimpleNamespace(trainable=lambda: [("a", parameter)], sharding=Replicated())
    checkpoint.load(folder, policy, torch.optim.SGD([parameter], lr=0.1))


def test_what_is_damaged_below_is_whole(saved):
    assert checkpoint.damage(saved) is None
    put_in_place(saved)


@inputs(1000)
@given(st.data())
def test_manifests(saved, data):
    whole = manifest_of(saved)
    odd = st.sampled_from(ODD_NAMES).map(lambda n: whole | {"files": whole["files"] | {n: {"sha256": "", "size": 0}}})
    content = data.draw(
        damaged(json.dumps(whole).encode()) | (changed(whole) | odd).map(lambda value: json.dumps(value).encode())
    )
    (saved / checkpoint.MANIFEST).write_bytes(content)
    problem = survives(checkpoint.damage, saved)
    assert problem is None or (0 < len(problem) < 2000 and checkpoint.newest(saved.parent)[0] is None)


@inputs(500)
@given(damaged(json.dumps(STATE).encode()) | changed(STATE).map(lambda value: json.dumps(value).encode()))
def test_states(saved, content):
    (saved / checkpoint.STATE).write_bytes(content)
    survives(put_in_place, saved)


@inputs(1000)
@given(
    st.sampled_from([checkpoint.WEIGHTS, checkpoint.MOMENTS]),
    damaged(safetensors(HEADER)) | changed(HEADER).map(safetensors),
)
def test_headers_of_safetensors(saved, name, content):
    before = (saved / name).read_bytes()
    (saved / name).write_bytes(content)
    survives(put_in_place, saved)
    (saved / name).write_bytes(before)


@inputs(20)
@given(st.sampled_from([".json", ".csv", ".parquet"]), st.data())
def test_other_files_of_data(place, suffix, data):
    import pandas

    file, table = place / f"rows{suffix}", pandas.DataFrame(ROWS[:2])
    writer = {".json": lambda: table.to_json(file, orient="records"), ".csv": lambda: table.to_csv(file)}
    writer.get(suffix, lambda: table.to_parquet(file))()
    file.write_bytes(data.draw(damaged(file.read_bytes())))
    survives(lambda: read_rows(Data(source=str(file)), seed=0))
