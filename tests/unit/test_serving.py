"""Servers without vLLM: the token before every route, weights in a file, processes that are watched and replaced."""

import asyncio
import os
import signal
import subprocess
import sys
import time
import warnings
from collections import namedtuple
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from llmrl.errors import LlmrlError, RecipeError, RolloutError
from llmrl.serving import fleet as fleets
from llmrl.serving import weights as files
from llmrl.serving.client import base_url, words
from llmrl.serving.fleet import Fleet, ServerOptions, arguments, environment, free_ports, read_token
from llmrl.serving.guard import TOKEN, Guard
from llmrl.serving.serve import ports_from, server_token
from llmrl.serving.weights import VERSION, WeightsFromFile, own_folder, write_weights

OPTIONS = ServerOptions("model", 64)
TESTS = Path(__file__).parents[1]


def through(guard, kind, headers):
    """(whether the application was reached, what was sent back)."""
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(guard({"type": kind, "path": "/collective_rpc", "headers": headers}, None, send))
    return reached.pop() if reached else False, sent


reached = []


@pytest.fixture
def guard(monkeypatch):
    monkeypatch.setenv(TOKEN, "right")

    async def application(scope, receive, send):
        reached.append(True)

    return Guard(application)


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_only_the_token_passes(guard, kind):
    right = (b"authorization", b"Bearer right")
    assert through(guard, kind, [(b"Authorization", b"Bearer right")]) == (True, [])
    for headers in ([], [(b"authorization", b"Bearer wrong")], [(b"authorization", b"right")], [right, right]):
        passed, sent = through(guard, kind, headers)
        assert not passed
        if kind == "http":
            assert sent[0]["status"] == 401 and b"right" not in sent[1]["body"]
        else:
            assert sent == [{"type": "websocket.close", "code": 1008}]


def test_lifespan_passes_and_no_token_is_no_server(guard, monkeypatch):
    assert through(guard, "lifespan", [])[0]
    for token in ("", None):
        monkeypatch.setenv(TOKEN, token) if token is not None else monkeypatch.delenv(TOKEN)
        with pytest.raises(RuntimeError, match=TOKEN):
            Guard(None)


def test_weights_are_written_whole_with_their_version(tmp_path):
    table = torch.randn(4, 3)
    named = [("embed", table), ("lm_head.weight", table), ("steps", torch.tensor([1, 2]))]
    size = write_weights(iter(named), tmp_path / "a.safetensors", "7-x", torch.bfloat16)
    found = load_file(tmp_path / "a.safetensors")
    assert_close(found["lm_head.weight"], table.bfloat16())
    assert found["steps"].dtype == torch.int64 and size == 2 * 2 * 12 + 16
    assert [f.name for f in tmp_path.iterdir()] == ["a.safetensors"]


def test_half_a_file_is_no_file(tmp_path, monkeypatch):
    def killed(*_, **__):
        (tmp_path / "a.tmp").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        write_weights([("a", torch.ones(1))], tmp_path / "a.safetensors", "1", torch.float32)
    assert not (tmp_path / "a.safetensors").exists()


def test_weights_that_do_not_fit_are_refused_before_they_are_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage(files.SPARE + 3))
    with pytest.raises(RolloutError, match="weights take 0 MiB.*weights_folder"):
        write_weights([("a", torch.ones(1))], tmp_path / "a.safetensors", "1", torch.float32)
    assert not list(tmp_path.iterdir())
    with pytest.raises(RolloutError, match="weights_folder.*Name a folder"):
        own_folder(str(tmp_path / "missing"))


def test_a_worker_says_what_it_holds(tmp_path, monkeypatch):
    """Another file than the one it was told of, a broken one, none: an error as an answer, and nothing is held."""
    worker, got = WeightsFromFile(), []
    worker.model_config = namedtuple("config", "max_model_len")(64)
    monkeypatch.setattr(files, "load_in_place", lambda _, weights: got.extend(weights))
    write_weights([("a", torch.ones(1))], tmp_path / "a.safetensors", "1-x", torch.float32)
    assert worker.llmrl_state()["version"] is None
    first = worker.llmrl_load(str(tmp_path / "a.safetensors"), "1-x")
    assert first["version"] == "1-x" and first == worker.llmrl_state() and [name for name, _ in got] == ["a"]
    assert worker.llmrl_load(str(tmp_path / "a.safetensors"), "1-x")["load"] != first["load"]
    (tmp_path / "b.safetensors").write_bytes(b"x" * 100)
    for path, version in (("a", "2-x"), ("b", "2-x"), ("c", "2-x")):
        assert "error" in worker.llmrl_load(str(tmp_path / f"{path}.safetensors"), version)
        assert worker.llmrl_state()["load"] is None
    assert VERSION in (tmp_path / "a.safetensors").read_bytes().decode(errors="replace")


def test_addresses_and_words():
    assert base_url("http://host:8000/") == "http://host:8000" and base_url("https://[::1]:1") == "https://[::1]:1"
    for wrong in ("host:8000", "http://", "http://host/v1", "http://u:p@host", "http://host?x=1", "file:///etc"):
        with pytest.raises(RecipeError, match="rollout.engine.urls"):
            base_url(wrong)
    assert words(b"\x1b[2J\n" + b"x" * 9999) == " [2J " + "x" * 295


def test_a_server_is_guarded_and_no_process_of_the_run(monkeypatch):
    words = " ".join(arguments(OPTIONS, "127.0.0.1", 8000))
    for needed in ("--middleware llmrl.serving.guard.Guard", "--host 127.0.0.1", "--logprobs-mode processed_logprobs"):
        assert needed in words
    around = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "LOCAL_RANK": "1", "HOME": "/home", "PATH": "p"}
    found = environment(around, "secret", "/sockets", 0, 1)
    assert not set(around) - {"HOME", "PATH"} & set(found) and found["HOME"] == "/home" and found[TOKEN] == "secret"
    assert "secret" not in words and "CUDA_VISIBLE_DEVICES" not in found


def test_gpus_are_dealt_out(monkeypatch):
    monkeypatch.setattr(fleets, "_gpus", lambda: ["4", "5", "6", "7"])
    dealt = [environment({}, "t", "s", n, 2)["CUDA_VISIBLE_DEVICES"] for n in range(3)]
    assert dealt == ["4,5", "6,7", "4,5"]
    words = " ".join(arguments(ServerOptions("model", 64, tensor_parallel=2), "127.0.0.1", 8000))
    assert "--enforce-eager" not in words and "--tensor-parallel-size 2" in words and "uni" not in words


def test_ports_and_tokens(tmp_path, monkeypatch):
    assert ports_from(8000, 3) == [8000, 8001, 8002] and len(set(free_ports(5))) == 5
    for first, count in ((0, 1), (65535, 2), (70000, 1)):
        with pytest.raises(LlmrlError, match="--port"):
            ports_from(first, count)
    monkeypatch.delenv(TOKEN, raising=False)
    (tmp_path / "token").write_text("old")
    (tmp_path / "token").chmod(0o644)
    token, where = server_token(tmp_path)
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600 and token not in where
    assert read_token(str(tmp_path / "token")) == token and len(token) > 30
    monkeypatch.setenv(TOKEN, "own")
    assert server_token(tmp_path)[0] == read_token(None) == "own"


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """quick(count): a fleet of servers that start in a moment."""
    monkeypatch.setattr(fleets, "PROGRAM", "fixtures.fake_replica")
    monkeypatch.setenv("PYTHONPATH", f"{TESTS}:{TESTS.parent}")
    made = []

    def make(count, **options):
        made.append(
            Fleet(OPTIONS, free_ports(count), "token", tmp_path, **({"patience": 1.0, "startup": 60.0} | options))
        )
        return made[-1]

    yield make
    for fleet in made:
        fleet.close()


def until(true, seconds=120.0):
    """A guard against hanging, no measurement."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def pids(fleet):
    """Of the fleet's servers that are alive, in the order of their ports."""
    found = {}
    for process in psutil.process_iter(["cmdline", "status"]):
        line, state = process.info["cmdline"] or [], process.info["status"]
        if "fixtures.fake_replica" in line and state != psutil.STATUS_ZOMBIE:
            found[int(line[line.index("--port") + 1])] = process.pid
    return [found[port] for port in fleet.ports if port in found]


@pytest.mark.processes
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_server_that_dies_or_hangs_is_started_anew(quick, how):
    fleet = quick(2)
    until(lambda: len(fleet.ready) == 2)
    before = pids(fleet)
    os.kill(before[0], how)
    began = time.monotonic()
    until(lambda: len(fleet.ready) == 2 and sum(fleet.started.values()) == 3)
    print(f"{how.name}: replaced after {time.monotonic() - began:.1f} s")
    assert len(pids(fleet)) == 2 and before[0] not in pids(fleet) and not fleet.failed
    fleet.close()
    assert not pids(fleet) and not os.path.exists(fleet.sockets)


@pytest.mark.processes
def test_one_that_never_starts_is_given_up_with_its_last_words(quick, monkeypatch):
    monkeypatch.setenv("LLMRL_FAULT", "exit")
    fleet = quick(1)
    until(lambda: fleet.failed)
    assert "ended with status 1, 3 times in a row" in fleet.failed[0]
    assert "no such model [31m" in fleet.failed[0] and "\x1b" not in fleet.failed[0]
    assert fleet.started[0] == fleets.STARTS


PARENT = """
import os, sys, time
from pathlib import Path
from llmrl.serving import fleet as fleets
fleets.PROGRAM = "fixtures.fake_replica"
fleet = fleets.Fleet(fleets.ServerOptions("model", 64), [int(sys.argv[1])], "token", Path(sys.argv[2]))
while not fleet.ready:
    time.sleep(0.05)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.processes
def test_no_server_outlives_who_started_it(tmp_path):
    port = free_ports(1)[0]
    variables = os.environ | {"PYTHONPATH": f"{TESTS}:{TESTS.parent}"}
    command = [sys.executable, "-c", PARENT, str(port), str(tmp_path)]
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "ready\n"
        here = namedtuple("fleet", "ports")([port])
        assert len(pids(here)) == 1
        parent.kill()
        until(lambda: not pids(here), 10.0)


@pytest.mark.processes
def test_a_run_goes_on_when_one_of_its_servers_is_killed(quick, monkeypatch, tmp_path):
    """Started by the engine itself, killed while it samples: replaced, given the weights, and nothing is missing."""
    sys.path.insert(0, str(TESTS / "integration"))
    from test_server_faults import GROUP, PROMPTS, SAMPLING, SEEDS, STOPS, VOCABULARY, Policy, right

    from llmrl.rollout.engine import Context
    from llmrl.rollout.vllm_server import VllmServerEngine

    monkeypatch.setenv("LLMRL_WAIT", "0.3")
    context = Context(Policy(), range(VOCABULARY), STOPS, max_prompt_tokens=16, max_tokens=16)
    engine = VllmServerEngine(context, replicas=2, timeout=120.0, heartbeat=2.0, weights_folder=str(tmp_path))
    try:
        until(lambda: len(engine.fleet.ready) == 2)
        os.kill(pids(engine.fleet)[0], signal.SIGKILL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(3):
                got = [[r.ids for r in row] for row in engine.generate(PROMPTS, SAMPLING, GROUP, SEEDS)]
                assert got == right()
        until(lambda: len(engine.fleet.ready) == 2)
        assert sum(engine.fleet.started.values()) == 3
    finally:
        engine.close()
    assert not pids(engine.fleet)
