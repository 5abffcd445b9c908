"""Rollouts by servers that fail: what is asked again, of whom, and how long it takes until all samples are there."""

import contextlib
import os
import subprocess
import sys
import threading
import time
import warnings
from types import SimpleNamespace

import pytest
import torch
from fixtures.chat_server import flood, hang, raw, reset, slow_loris, status
from fixtures.completion_server import (
    TOKEN,
    VOCABULARY,
    CompletionServer,
    answered,
    changed,
    die,
    freeze,
    given_others,
    half,
    loaded_again,
    sample,
    started_anew,
)

from llmrl.errors import RecipeError, RolloutError
from llmrl.rollout.checks import spread
from llmrl.rollout.completions import request
from llmrl.rollout.engine import Context
from llmrl.rollout.vllm_server import VllmServerEngine
from llmrl.types import Prompt, Sampling

STOPS = (7, 11)
SAMPLING = Sampling(max_tokens=12)
PROMPTS = [Prompt(id=f"p{i}", ids=(20, 21, 30 + i)) for i in range(6)]
SEEDS = list(range(40, 46))
GROUP = 4


class Even(torch.nn.Module):
    """A policy that thinks every token equally likely, whatever its weight."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(4))

    def forward(self, ids):
        return SimpleNamespace(logits=torch.zeros(*ids.shape, VOCABULARY))


class Policy:
    path = "nowhere"

    def __init__(self):
        self.model = Even()
        self.whole = contextlib.nullcontext

    def named_weights(self):
        yield "weight", self.model.weight.detach()


@pytest.fixture
def engine_of(monkeypatch, tmp_path):
    """engine_of(servers, options): one that samples from them."""
    monkeypatch.setenv("LLMRL_SERVER_TOKEN", TOKEN)
    made = []

    def make(*servers, **options):
        context = Context(Policy(), range(VOCABULARY), STOPS, max_prompt_tokens=16, max_tokens=16)
        slow = {"timeout": 120.0, "heartbeat": 30.0, "weights_folder": str(tmp_path)}  # for a machine that is busy
        made.append(VllmServerEngine(context, urls=tuple(s.url for s in servers), **(slow | options)))
        return made[-1]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield make
    for engine in made:
        engine.close()


def right(prompts=PROMPTS, seeds=SEEDS):
    """The tokens that any healthy server gives."""
    bodies = [request(p.ids, SAMPLING, GROUP, spread(s), STOPS, "") for p, s in zip(prompts, seeds, strict=True)]
    return [[tuple(sample(body, i)["token_ids"]) for i in range(GROUP)] for body in bodies]


def generated(engine):
    return [[r.ids for r in row] for row in engine.generate(PROMPTS, SAMPLING, GROUP, SEEDS)]


def asked_for(*servers):
    """(prompt, seed) of each sample that was asked for, as often as it was."""
    bodies = [body for server in servers for body in server.asked]
    return [(tuple(body["prompt"]), body["seed"] + i) for body in bodies for i in range(body["n"])]


def drop(choices):
    del choices[2]


def nan(choices):
    choices[-1]["logprobs"]["token_logprobs"][0] = float("nan")


def infinite(choices):
    choices[1]["logprobs"]["token_logprobs"][0] = -9999.0


def fewer_logprobs(choices):
    choices[3]["logprobs"]["token_logprobs"].pop()


def cut(choices):
    choices[0] |= {"token_ids": [20, 21], "logprobs": {"token_logprobs": [-1.0, -1.0]}, "finish_reason": "length"}


def too_long(choices):
    choices[0] |= {"token_ids": [20] * 13, "logprobs": {"token_logprobs": [-1.0] * 13}, "finish_reason": "length"}


def aborted(choices):
    choices[2]["finish_reason"] = "abort"


def outside(choices):
    choices[2]["token_ids"][0] = VOCABULARY


def wrong_types(choices):
    choices[2]["token_ids"][0] = "20"


BROKEN = [drop, nan, infinite, fewer_logprobs, cut, too_long, aborted, outside, wrong_types]
LOST = {
    "reset": reset,
    "500": status(500, "out of memory"),
    "503": status(503),
    "half": half,
    "garbage": raw(b"<html>busy</html>"),
    "null": raw(b"null"),
    "no choices": raw(b"{}"),
    "flood": flood,
    "started anew": started_anew,
    "given others": given_others,
    "loaded again": loaded_again,
}


def test_any_number_of_servers_gives_the_same_rollouts(engine_of):
    with CompletionServer() as one, CompletionServer() as two, CompletionServer() as three:
        alone = engine_of(one)
        assert generated(alone) == right()
        one.asked.clear()
        for server in (one, two, three):
            server.wait = 0.05
        several = engine_of(one, two, three)
        assert generated(several) == right()
        shares = [len(server.asked) for server in (one, two, three)]
        assert sum(shares) == len(PROMPTS) and max(shares) == 2  # a group is one request, and each server has its share
        rollouts = several.generate(PROMPTS[:1], SAMPLING, GROUP, SEEDS[:1])[0]
        assert {r.version for r in rollouts} == {0} and all(r.truncated == (r.ids[-1] not in STOPS) for r in rollouts)


def test_the_caller_is_told_of_what_has_come_in_its_own_thread(engine_of):
    with CompletionServer() as quick, CompletionServer() as slow:
        engine, told = engine_of(quick, slow), []
        slow.wait = 1.0

        def finished(ended):
            assert threading.current_thread() is threading.main_thread()
            told.append({number: [r.ids for r in row] for number, row in ended.items()})

        rows = engine.generate(PROMPTS, SAMPLING, GROUP, SEEDS, finished)
        known = {number: row for some in told for number, row in some.items()}
        assert 1 <= len(known) < len(PROMPTS) and all(right()[number] == row for number, row in known.items())
        assert [[r.ids for r in row] for row in rows] == right() and {} in told  # let in although nothing was new


def test_a_prompt_is_told_of_while_another_is_still_being_written(engine_of):
    """The last answer is held back until the caller has heard of all the others."""
    heard, everything = {}, threading.Event()

    def held(handler, body):
        if everything.wait(60):
            answered(handler, body)

    def finished(ended):
        heard.update(ended)
        if len(heard) == len(PROMPTS) - 1:
            everything.set()

    for servers in (1, 2):
        heard.clear(), everything.clear()
        with CompletionServer([held]) as slow, CompletionServer() as other:
            engine = engine_of(*[slow, other][:servers])
            assert [
                [r.ids for r in row] for row in engine.generate(PROMPTS, SAMPLING, GROUP, SEEDS, finished)
            ] == right()
            assert everything.is_set() and engine.measured()["rollout/asked_again"] == 0


def test_faults_are_counted_until_they_are_asked_for(engine_of):
    with CompletionServer([None, changed(nan), reset]) as faulty, CompletionServer() as other:
        engine = engine_of(faulty, other)
        assert engine.measured() == {"rollout/asked_again": 0, "rollout/servers": 2}
        other.wait = faulty.wait = 0.05
        assert generated(engine) == right()
        assert engine.measured()["rollout/asked_again"] == 1 + GROUP
        other.kill()
        engine.sync(engine.context.policy, 1)
        assert engine.measured() == {"rollout/asked_again": 0, "rollout/servers": 1}


def test_greedy_samples_are_asked_for_once(engine_of):
    with CompletionServer() as server:
        rows = engine_of(server).generate(PROMPTS, Sampling(12, temperature=0.0), GROUP, SEEDS, lambda ended: None)
        assert [body["n"] for body in server.asked] == [1] * len(PROMPTS)
        assert all(row == [row[0]] * GROUP for row in rows)


@pytest.mark.parametrize("change", BROKEN)
def test_of_a_broken_answer_only_the_broken_sample_is_asked_for_again(engine_of, change):
    with CompletionServer([None, changed(change)]) as server:
        assert generated(engine_of(server)) == right()
        assert sorted(body["n"] for body in server.asked) == [1] + [GROUP] * len(PROMPTS)
        assert len(set(asked_for(server))) == len(PROMPTS) * GROUP


@pytest.mark.parametrize("fault", LOST)
@pytest.mark.parametrize("servers", [1, 2])
def test_a_lost_answer_is_asked_for_again_and_nothing_else(engine_of, fault, servers, record_property):
    with CompletionServer([None, LOST[fault]]) as faulty, CompletionServer() as other:
        every = [faulty, other][:servers]
        for server in every:
            server.wait = 0.02
        engine = engine_of(*every)
        began = time.monotonic()
        assert generated(engine) == right()
        seconds = time.monotonic() - began
        record_property("seconds", seconds)
        print(f"{fault}, {servers} servers: all samples after {seconds:.2f} s")
        again = len(asked_for(*every)) - len(PROMPTS) * GROUP
        # requests to the server that were under way as it was left out are lost with it where its weights are in doubt
        assert again == GROUP or (fault in ("started anew", "given others", "loaded again") and again % GROUP == 0)
        if fault in ("started anew", "given others") and servers == 1:
            assert faulty.log.count("/load") == 2  # once at the sync, once more after it


@pytest.mark.parametrize("fault", [hang, slow_loris])
def test_a_request_that_does_not_end_is_given_up(engine_of, fault):
    with CompletionServer([fault]) as slow, CompletionServer() as other:
        began = time.monotonic()
        assert generated(engine_of(slow, other, timeout=1.5)) == right()
        print(f"{fault.__name__}: all samples after {time.monotonic() - began:.2f} s with a timeout of 1.5 s")


def test_a_server_that_hangs_is_noticed_by_the_heartbeat(engine_of):
    """Its requests would have 1,000 s; that its workers do not answer either is known after two heartbeats."""
    with CompletionServer([freeze]) as silent, CompletionServer() as other:
        other.wait = 0.05
        began = time.monotonic()
        assert generated(engine_of(silent, other, timeout=1000.0, heartbeat=0.5)) == right()
        print(f"frozen: all samples after {time.monotonic() - began:.2f} s with a heartbeat of 0.5 s")


def test_a_server_that_dies_and_comes_back_is_given_the_weights_again(engine_of):
    with CompletionServer() as server:
        engine = engine_of(server)

        server.plan = [None, lambda *a: (die(*a), threading.Timer(0.3, server.start).start())]
        began = time.monotonic()
        assert generated(engine) == right()
        print(f"died for 0.3 s: all samples after {time.monotonic() - began:.2f} s")
        assert server.log.count("/load") == 2


def test_a_server_that_stays_away_leaves_its_share_to_the_others(engine_of):
    with CompletionServer() as mortal, CompletionServer() as other:
        engine = engine_of(mortal, other)
        other.wait = 0.02

        mortal.plan = [die]
        assert generated(engine) == right()
        engine.sync(engine.context.policy, 1)  # without it
        assert generated(engine) == right()
        mortal.start()
        engine.sync(engine.context.policy, 2)  # with it, and its weights
        mortal.asked.clear()
        for _ in range(200):  # it was looked for ever less often
            assert generated(engine) == right()
            if mortal.asked:
                break
        assert mortal.version == other.version == engine.servers.wanted.tag and mortal.asked


def test_a_server_that_always_fails_does_not_use_up_the_retries_of_a_job(engine_of):
    """It is free at once after each failure; the other one, at work, must get the job all the same."""
    with CompletionServer([status(500)] * 1000) as broken, CompletionServer() as other:
        other.wait = 0.2
        assert generated(engine_of(broken, other, retries=1)) == right()


def test_retries_are_counted(engine_of):
    with CompletionServer([changed(nan)] * 100) as server:
        with pytest.raises(RolloutError, match="(?s)1 samples are missing after 3 requests.*not finite.*retries"):
            generated(engine_of(server, retries=2))


def test_a_server_that_holds_other_weights_never_samples(engine_of):
    wrong = [[{"version": "another", "load": "1", "max_model_len": 4096}]] * 2
    half_loaded = [[{"version": None, "load": None, "max_model_len": 4096}]]
    with CompletionServer(loads=[*wrong, *half_loaded]) as server:
        engine = engine_of(server)  # the fourth order to load is the first that it follows
        assert server.log == ["/pause", "/load"] * 4 + ["/resume"]
        assert generated(engine) == right()


def test_half_a_sync_never_samples(engine_of):
    """One of two shards has the weights, the other has not."""
    with CompletionServer(shards=2) as server:
        engine = engine_of(server)
        engine.servers.timeout = 0.5

        def half_loaded(tag):
            return [{"version": v, "load": "1", "max_model_len": 4096} for v in (tag, "0-old")]

        server.loads = [half_loaded] * 1000
        with pytest.raises(RolloutError, match="(?s)no server could be used.*0-old.*in each of its workers"):
            engine.sync(engine.context.policy, 1)
        asked = len(server.asked)
        with pytest.raises(RolloutError, match="the last weight sync failed"):
            generated(engine)
        assert len(server.asked) == asked
        server.loads = []
        engine.sync(engine.context.policy, 2)
        assert generated(engine) == right()


def test_weights_that_a_server_cannot_load_are_an_error_at_once(engine_of):
    failed = [{"error": "FileNotFoundError: no such file"}]
    with CompletionServer(loads=[failed] * 1000) as server:
        with pytest.raises(RolloutError, match="could not load the weights: FileNotFoundError.*weights_folder"):
            engine_of(server, timeout=1000.0)
    with CompletionServer(loads=[failed] * 1000) as server, CompletionServer() as other:
        assert generated(engine_of(server, other)) == right()
        assert not server.asked and "/resume" not in server.log


def test_a_server_whose_numbers_are_not_the_policys_is_an_error(engine_of):
    with CompletionServer() as server:
        engine = engine_of(server)
        with torch.no_grad():
            engine.context.policy.model.forward = lambda ids: SimpleNamespace(
                logits=torch.arange(float(VOCABULARY)).expand(*ids.shape, -1)
            )
        with pytest.raises(RolloutError, match="away from the policy's in the mean"):
            engine.sync(engine.context.policy, 1)
        with pytest.raises(RolloutError, match="the last weight sync failed"):
            generated(engine)


def test_weights_are_removed_and_the_old_ones_before_the_new(engine_of, tmp_path):
    with CompletionServer() as server:
        engine = engine_of(server)
        for version in (1, 2):
            engine.sync(engine.context.policy, version)
            assert [f.stem for f in engine.folder.iterdir()] == [engine.servers.wanted.tag]
        assert engine.folder.stat().st_mode & 0o777 == 0o700
        left = tmp_path / f"{engine.folder.name.rpartition('-')[0].rpartition('-')[0]}-999999999-x"
        left.mkdir()
        engine_of(server)
        assert not left.exists() and engine.folder.exists()  # of a process that is gone; of one that is not
        engine.close()
        assert not engine.folder.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"urls": ("ftp://a:1",)}, "expected http://host:port"),
        ({"urls": ("http://user:secret@a:1",)}, "expected http://host:port"),
        ({"urls": ("http://a:1",), "replicas": 2}, "found urls and replicas"),
        ({"urls": ("http://a:1",), "token_file": "/no/such/file"}, "token_file.*llmrl serve"),
    ],
)
def test_mistakes_in_the_recipe_are_said(options, said, monkeypatch):
    context = Context(Policy(), range(VOCABULARY), STOPS, max_prompt_tokens=16, max_tokens=16)
    monkeypatch.delenv("LLMRL_SERVER_TOKEN", raising=False)
    with pytest.raises((RecipeError, RolloutError), match=said) as raised:
        VllmServerEngine(context, **options)
    assert "secret" not in str(raised.value)


def test_what_the_servers_say_for_good_is_an_error_at_once(engine_of, monkeypatch):
    with CompletionServer(room=20) as small:
        with pytest.raises(RolloutError, match="takes 20 tokens.*32 together.*llmrl serve.*--max-model-len 32"):
            engine_of(small, timeout=1000.0)
    with CompletionServer() as server:
        monkeypatch.setenv("LLMRL_SERVER_TOKEN", "another")
        with pytest.raises(RolloutError, match="refuses the token.*token_file"):
            engine_of(server, timeout=1000.0)
        monkeypatch.delenv("LLMRL_SERVER_TOKEN")
        with pytest.raises(RolloutError, match="no token for the servers"):
            engine_of(server)
    with CompletionServer([status(400, "prompt too long")]) as server:
        monkeypatch.setenv("LLMRL_SERVER_TOKEN", TOKEN)
        with pytest.raises(RolloutError, match="refuses a request: prompt too long"):
            generated(engine_of(server))


def test_no_server_at_all_is_an_error_in_time(engine_of):
    with CompletionServer() as server:
        pass
    with pytest.raises(RolloutError, match=r"(?s)no server could be used for 0.5 s.*ConnectError"):
        engine_of(server, timeout=0.5)
    assert not [name for name in os.listdir("/dev/shm") if f"-{os.getpid()}-" in name]


TWO_RANKS = """
import sys, torch.distributed as dist
from fixtures.completion_server import VOCABULARY
from test_server_faults import *
dist.init_process_group("gloo")
rank = dist.get_rank()
context = Context(Policy(), range(VOCABULARY), STOPS, max_prompt_tokens=16, max_tokens=16)
options = {"timeout": 20.0, "heartbeat": 5.0, "weights_folder": sys.argv[1]}
engine = VllmServerEngine(context, urls=(sys.argv[2],), **options)
share = slice(3 * rank, 3 * rank + 3)
for version in (1, 2):
    engine.sync(context.policy, version)
    found = engine.generate(PROMPTS[share], SAMPLING, GROUP, SEEDS[share])
    assert [[r.ids for r in row] for row in found] == right()[share] and found[0][0].version == version
    dist.barrier()
try:  # what only the first rank finds is an error on both
    engine.servers.timeout = 0.2
    engine.servers.every[0].url = "http://127.0.0.1:9"
    engine.sync(context.policy, 3)
except RolloutError as error:
    print("rank", rank, "told" if "no server could be used" in str(error) else error)
engine.close()
dist.barrier()
"""


@pytest.mark.processes
def test_two_ranks_share_servers_and_errors(tmp_path):
    (tmp_path / "ranks.py").write_text(TWO_RANKS)
    here = os.path.dirname(__file__)
    places = os.pathsep.join([os.path.dirname(os.path.dirname(here)), os.path.dirname(here), here])
    command = ["timeout", "300", sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    with CompletionServer() as server:
        done = subprocess.run(
            [*command, str(tmp_path / "ranks.py"), str(tmp_path), server.url],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": places, "LLMRL_SERVER_TOKEN": TOKEN},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and done.stdout.count("told") == 2, done.stdout + done.stderr[-3000:]
        assert server.log.count("/load") == 3  # the first rank's, at each sync; the second one finds them there
        assert len(asked_for(server)) == 2 * len(PROMPTS) * GROUP
    assert [f.name for f in tmp_path.iterdir()] == ["ranks.py"]
