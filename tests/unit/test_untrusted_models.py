"""Folders of models from anyone: no code of theirs runs, nothing is unpickled, and what is damaged is a ModelError."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmrl.config import Model
from llmrl.data.tokenizer import check_template, load_tokenizer
from llmrl.errors import ModelError
from llmrl.policy.load import load_policy
from llmrl.training.preview import description
from reward_models.process_reward import judge
from reward_models.reward_model import classifier

WEIGHTS = "model.safetensors"


class Trap:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def copy(tiny_folder, tmp_path):
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def load(folder, **config):
    return load_policy(Model(path=str(folder), **config), Path(folder).parent / "run", seed=0)


def change(file, **fields):
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


LOADERS = {
    "policy": load,
    "reward model": lambda folder: classifier.__wrapped__(str(folder), "cpu", "fp32"),
    "process reward": lambda folder: judge.__wrapped__(str(folder), (), "cpu", "fp32"),
}


@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS)
def test_pickled_weights_are_never_read(copy, tmp_path, loader):
    (copy / WEIGHTS).unlink()
    torch.save({"x": Trap(tmp_path / "sprung")}, copy / "pytorch_model.bin")
    change(copy / "config.json", num_labels=1)
    with pytest.raises((ModelError, OSError), match="safetensors"):
        loader(copy)
    assert not (tmp_path / "sprung").exists()


def test_the_trap_springs_where_pickles_are_read(tmp_path):
    torch.save({"x": Trap(tmp_path / "sprung")}, tmp_path / "x.bin")
    torch.load(tmp_path / "x.bin", weights_only=False)
    assert (tmp_path / "sprung").exists()


def test_pickled_adapters_are_never_read(copy, tmp_path):
    policy = load(copy, lora={"rank": 2})
    policy.export(tmp_path / "adapters")
    weights = tmp_path / "adapters" / "adapter_model.safetensors"
    torch.save(load_file(weights) | {"x": Trap(tmp_path / "sprung")}, tmp_path / "adapters" / "adapter_model.bin")
    weights.unlink()
    with pytest.raises(ModelError, match="no adapter_model.safetensors"):
        load(tmp_path / "adapters")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("loader", [*LOADERS.values(), description], ids=[*LOADERS, "check"])
def test_code_of_a_model_never_runs(copy, tmp_path, loader):
    (copy / "own.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\nclass Own: pass\n")
    every = {name: "own.Own" for name in ("AutoConfig", "AutoModelForCausalLM", "AutoModelForSequenceClassification")}
    change(copy / "config.json", model_type="own_kind", auto_map=every, num_labels=1)
    change(copy / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", None]}, tokenizer_class="Own")
    with pytest.raises((ModelError, ValueError)) as caught:
        loader(str(copy))
    assert not (tmp_path / "sprung").exists()
    if caught.type is ModelError:
        assert "code that comes with a model never runs" in str(caught.value)


def truncated(folder):
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])


def huge_header(folder):
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes((1 << 60).to_bytes(8, "little") + whole[8:])


def emptied(folder):
    (folder / WEIGHTS).write_bytes(b"")


def missing_weight(folder):
    weights = load_file(folder / WEIGHTS)
    del weights["model.norm.weight"]
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def fields(**values):
    return lambda folder: change(folder / "config.json", **values)


DAMAGE = {
    "truncated": truncated,
    "huge header": huge_header,
    "empty": emptied,
    "a weight is missing": missing_weight,
    "not JSON": lambda folder: (folder / "config.json").write_text("{"),
    "not UTF-8": lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe{}"),
    "a list": lambda folder: (folder / "config.json").write_text("[]"),
    "another size": fields(hidden_size=48),
    "no heads": fields(num_attention_heads=0),
    "more layers": fields(num_hidden_layers=3),
    "text for a number": fields(hidden_size="many"),
    "unknown kind": fields(model_type="no_such_kind"),
    "no tokenizer": lambda folder: [p.unlink() for p in folder.glob("tokenizer*")],
    "damaged tokenizer": lambda folder: (folder / "tokenizer.json").write_text('{"version": 1}'),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_model_is_a_clear_error(copy, damage):
    damage(copy)
    with pytest.raises(ModelError, match="Expected a folder with config.json, safetensors"):
        load(copy)


@pytest.mark.parametrize("damage", [truncated, huge_header, emptied])
def test_a_damaged_head_or_adapter_is_a_clear_error(copy, tmp_path, damage):
    policy = load_policy(Model(path=str(copy), lora={"rank": 2}), tmp_path, seed=0, values=True)
    policy.export(tmp_path / "export")
    for name in ("value_head.safetensors", "adapter_model.safetensors"):
        broken = Path(shutil.copytree(tmp_path / "export", tmp_path / f"broken-{name}"))
        (broken / name).rename(broken / WEIGHTS)
        damage(broken)
        (broken / WEIGHTS).rename(broken / name)
        with pytest.raises(ModelError, match="could not be loaded"):
            load_policy(Model(path=str(broken)), tmp_path, seed=0, values=True)


RUNAWAY = {
    "an endless loop": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "memory": "{{ 'a' * 10**10 }}",
    "memory behind an error": "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}{{ 'a' | center(999999999) }}",
    "memory ahead of time": "{% if nothing %}{{ 'a' | center(999999999) }}{% endif %}x",
    "a long text": "{{ 'a' * 100000 }}",
}


@pytest.mark.parametrize("template", RUNAWAY.values(), ids=RUNAWAY)
def test_a_chat_template_that_runs_away_is_refused(copy, monkeypatch, template):
    monkeypatch.setattr("llmrl.data.tokenizer.SECONDS", 1)
    (copy / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelError, match="chat template took too"):
        load_tokenizer(str(copy))


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{{ ''.__class__.__mro__ }}", "{% nonsense"])
def test_a_template_that_writes_no_turn_is_refused(copy, template):
    tokenizer = load_tokenizer(str(copy))
    tokenizer.chat_template = template
    with pytest.raises(ModelError, match="or raised for two short turns"):
        check_template(tokenizer, "here")


def test_a_tokenizer_without_a_template_or_with_one_that_wants_an_answer_loads(copy):
    tokenizer = load_tokenizer(str(copy))
    for template in (None, "{{ raise_exception('no answer') if messages | length < 2 else 'a' }}"):
        tokenizer.chat_template = template
        check_template(tokenizer, "here")
