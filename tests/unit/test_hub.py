"""Without a hub: one error that says what to do, at once, and what is stored here goes on being used."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import pytest
from huggingface_hub import constants

from llmrl import hub
from llmrl.config import Data, Model
from llmrl.data.read import read_rows
from llmrl.errors import DataError, ModelError
from llmrl.policy.load import pinned

NOWHERE = "http://127.0.0.1:9"  # the port that discards: nothing listens


@pytest.fixture
def silent(monkeypatch, tmp_path):
    """A hub that refuses the connection, an empty store, and a process that does not know it yet."""
    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "store"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "silence", functools.cache(hub.silence.__wrapped__))
    return tmp_path


def stored(folder, revision="main"):
    """A model's file as the hub's client keeps it."""
    repo = folder / "store" / "models--someone--model"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / revision).write_text("abc")
    (repo / "snapshots" / "abc").mkdir(parents=True)
    (repo / "snapshots" / "abc" / "config.json").write_text("{}")


def test_a_model_that_cannot_be_had_is_refused_with_the_next_move(silent):
    with pytest.raises(ModelError) as caught:
        pinned(Model(path="someone/model"))
    text = str(caught.value)
    assert f"model.path: found no folder 'someone/model' in {silent}" in text
    assert f"{NOWHERE} does not answer" in text and "nothing of someone/model is stored in" in text
    assert "Expected a folder with config.json" in text and "Copy the model here" in text
    assert constants.HF_HUB_OFFLINE and os.environ["HF_HUB_OFFLINE"] == "1"


def test_a_model_that_is_stored_is_used_with_a_warning(silent):
    stored(silent)
    with pytest.warns(UserWarning, match="does not answer .*; someone/model is taken from"):
        assert pinned(Model(path="someone/model")) == "someone/model"


def test_another_revision_than_the_stored_one_is_refused(silent):
    stored(silent)
    with pytest.raises(ModelError, match="nothing of someone/model is stored"):
        pinned(Model(path="someone/model", revision="v2"))


def test_a_folder_and_a_path_do_not_ask_the_hub(silent, monkeypatch):
    monkeypatch.setattr(hub, "silence", lambda: pytest.fail("asked the hub"))
    (silent / "model").mkdir()
    assert pinned(Model(path=str(silent / "model"))) == str(silent / "model")
    assert pinned(Model(path="/no/such/folder")) == "/no/such/folder"  # refused when it is loaded
    (silent / "rows").mkdir()
    (silent / "rows" / "train.jsonl").write_text('{"prompt": "a"}\n')
    assert read_rows(Data(source="rows"), seed=0)[0] == {"prompt": "a"}


def test_data_that_cannot_be_had_is_refused_with_the_next_move(silent, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", silent / "datasets")
    with pytest.raises(DataError) as caught:
        read_rows(Data(source="someone/questions"), seed=0)
    text = str(caught.value)
    assert f"data.source: found no file or folder 'someone/questions' in {silent}" in text
    assert f"{NOWHERE} does not answer" in text and "Copy the data here and name the file" in text


def test_the_command_says_it_in_one_line_without_retrying(tmp_path):
    (tmp_path / "hub.yaml").write_text(
        "model: {path: someone/model}\ndata: {source: addition}\nalgorithm: {name: sft}\nrollout: {engine: replay}\n"
    )
    free = {k: v for k, v in os.environ.items() if "OFFLINE" not in k and not k.lower().endswith("_proxy")}
    environment = free | {"HF_ENDPOINT": NOWHERE, "HF_HOME": str(tmp_path / "home")}
    words = [sys.executable, "-m", "llmrl.cli", "check", "hub.yaml"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("ModelError: model.path: found no folder 'someone/model'") and NOWHERE in line
