import json

import pytest

from llmrl import hub
from llmrl.config import Data
from llmrl.data.read import read_rows
from llmrl.errors import CatalogError, DataError

ROWS = [{"prompt": "a", "n": 1}, {"prompt": "b", "n": 2}, {"prompt": "c", "n": 3}]


def written(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_jsonl_rows_and_limit(tmp_path):
    path = written(tmp_path, "rows.jsonl", "\n\n".join(map(json.dumps, ROWS)))
    assert read_rows(Data(source=path), seed=0) == ROWS
    assert read_rows(Data(source=path, limit=2), seed=0) == ROWS[:2]


def test_a_broken_line_is_named(tmp_path):
    path = written(tmp_path, "rows.jsonl", '{"prompt": "a"}\n\n{"prompt": \n')
    with pytest.raises(DataError, match="rows.jsonl, line 3: not JSON"):
        read_rows(Data(source=path), seed=0)


def test_a_line_that_is_no_object_is_refused(tmp_path):
    with pytest.raises(DataError, match="row 2 is a list"):
        read_rows(Data(source=written(tmp_path, "rows.jsonl", '{"prompt": "a"}\n[1]\n')), seed=0)


def test_csv_json_and_parquet(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    table = datasets.Dataset.from_list(ROWS)
    table.to_parquet(str(tmp_path / "rows.parquet"))
    sources = [
        written(tmp_path, "rows.csv", "prompt,n\na,1\nb,2\nc,3\n"),
        written(tmp_path, "rows.json", json.dumps(ROWS)),
        str(tmp_path / "rows.parquet"),
    ]
    for source in sources:
        assert read_rows(Data(source=source), seed=0) == ROWS


def test_a_missing_file_is_no_hub_id():
    with pytest.raises(DataError, match="no file nowhere/rows.jsonl"):
        read_rows(Data(source="nowhere/rows.jsonl"), seed=0)


def test_an_empty_source_is_refused(tmp_path):
    with pytest.raises(DataError, match="no rows"):
        read_rows(Data(source=written(tmp_path, "rows.jsonl", "\n")), seed=0)


def test_a_hub_failure_says_what_was_tried(monkeypatch):
    import datasets

    def offline(*arguments, **options):
        assert arguments == ("someone/gsm", "main") and options == {"split": "test", "revision": None}
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    monkeypatch.setattr(hub, "silence", lambda: None)  # the hub answers, and breaks off
    with pytest.raises(DataError, match="cannot load someone/gsm .split test.*no route.*local .jsonl"):
        read_rows(Data(source="someone/gsm", subset="main", split="test"), seed=0)


def generated_rows(*, size: int = 1, seed: int = 5, split: str = "train"):
    return [{"prompt": f"{seed} {split}"}] * size


def test_a_callable_gets_the_runs_seed_and_split_where_it_has_them():
    here = f"{__name__}:generated_rows"
    assert read_rows(Data(source=here, split="test"), seed=9) == [{"prompt": "9 test"}]
    named = {"name": here, "seed": 1, "split": "validation", "size": 2}
    assert read_rows(Data(source=named), seed=9) == [{"prompt": "1 validation"}] * 2


def test_a_catalog_source_by_name():
    assert len(read_rows(Data(source={"name": "addition", "size": 7}), seed=0)) == 7


def test_a_misspelt_option_of_a_source():
    with pytest.raises(DataError, match="sise is not an option of addition. Did you mean size"):
        read_rows(Data(source={"name": "addition", "sise": 7}), seed=0)
    with pytest.raises(DataError, match="data.source.task is missing: reasoning_gym has no default for it"):
        read_rows(Data(source={"name": "reasoning_gym"}), seed=0)
    with pytest.raises(DataError, match="data.source.size: found 'ten' .a string., expected a whole number"):
        read_rows(Data(source={"name": "addition", "size": "ten"}), seed=0)
    with pytest.raises(DataError, match="no 'name', only size"):
        read_rows(Data(source={"size": 7}), seed=0)
    with pytest.raises(CatalogError, match="Did you mean addition"):
        read_rows(Data(source={"name": "aditions"}), seed=0)
