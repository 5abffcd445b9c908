"""vLLM's own server, started, guarded, given weights, killed. One server for the whole file: it takes half a minute."""

import json
import os
import urllib.error
import urllib.request
import warnings

import psutil
import pytest
import torch
from helpers import rollouts as stored_rollouts
from helpers import rows, trained
from test_vllm import change, gap

pytest.importorskip("vllm")

from llmrl.config import Model
from llmrl.policy.load import load_policy
from llmrl.policy.tiny import tiny
from llmrl.rollout.engine import Context
from llmrl.rollout.servers import Servers
from llmrl.rollout.vllm_server import VllmServerEngine
from llmrl.serving.fleet import PROGRAM
from llmrl.types import Prompt, Sampling

pytestmark = [pytest.mark.vllm, pytest.mark.processes]

STOPS = (7, 11)
SHAPE = {"hidden": 128, "layers": 2, "heads": 4, "kv_heads": 2, "feed_forward": 64}  # vLLM's kernels want heads of 32
FREE = Sampling(max_tokens=16)
PROMPT = Prompt(id="short", ids=(20, 21, 22, 23))
LONG = Prompt(id="long", ids=tuple(20 + i % 100 for i in range(300)))  # two full cache blocks of 128
PROMPTS = [Prompt(id=f"p{i}", ids=(20, 21, 30 + i)) for i in range(6)]
SEEDS = list(range(40, 46))


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("model"))
    tiny(folder, **SHAPE)
    policy = load_policy(Model.model_validate({"path": folder}), tmp_path_factory.mktemp("policy"), seed=0)
    with torch.no_grad():  # what is said has to depend on what stands before
        generator = torch.Generator().manual_seed(0)
        for parameter in policy.module.parameters():
            if parameter.dim() > 1:
                parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
    context = Context(policy, policy.tokenizer, STOPS, max_prompt_tokens=480, max_tokens=32)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    made = VllmServerEngine(context, replicas=1, kv_cache_megabytes=16, timeout=900.0, heartbeat=120.0)
    yield made
    every = processes(made)
    made.close()
    assert not [p for p in every if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not made.folder.exists() and not os.path.exists(made.fleet.sockets)


def processes(engine):
    """The server and what it started, itself first."""
    port = str(engine.fleet.ports[0])
    leader = next(p for p in psutil.process_iter(["cmdline"]) if {PROGRAM, port} <= set(p.info["cmdline"] or []))
    return [leader, *leader.children(recursive=True)]


def answer_to(url, method="GET", token=None):
    request = urllib.request.Request(url, method=method, data=b"{}" if method == "POST" else None)
    request.add_header("Content-Type", "application/json")
    if token is not None:
        request.add_header("Authorization", token)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_nothing_but_the_token_opens_a_route(engine):
    url, token = engine.fleet.urls[0], engine.fleet.token
    status, found = answer_to(f"{url}/openapi.json", token=f"Bearer {token}")
    assert status == 200
    routes = [(path, method.upper()) for path, methods in json.loads(found)["paths"].items() for method in methods]
    assert len(routes) > 20 and ("/collective_rpc", "POST") in routes and ("/pause", "POST") in routes
    routes += [(path, "GET") for path in ("/", "/docs", "/redoc", "/metrics", "/metrics/", "/health", "/no/such/route")]
    routes += [("/v1/completions", method) for method in ("OPTIONS", "HEAD", "PUT", "DELETE")]
    for path, method in routes:
        for wrong in (None, "", "Bearer", "Bearer wrong", f"Basic {token}", token, f"Bearer {token}x"):
            assert answer_to(f"{url}{path}", method, wrong)[0] == 401, (path, method, wrong)
    assert answer_to(f"{url}/health", token=f"Bearer {token}")[0] == 200


def test_it_listens_on_the_loopback_alone_and_its_token_is_not_for_everyone(engine):
    every = processes(engine)
    addresses = [c.laddr.ip for p in every for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert addresses and set(addresses) == {"127.0.0.1"}
    assert os.stat(engine.fleet.sockets).st_mode & 0o777 == 0o700 and os.listdir(engine.fleet.sockets)
    assert not [p for p in every if engine.fleet.token in " ".join(p.cmdline())]
    assert engine.fleet.token not in engine.fleet.log(0).read_text()


def test_weights_arrive_and_nothing_of_the_old_ones_is_left(engine):
    policy = engine.context.policy
    torch.manual_seed(0)
    for version in (1, 2):
        assert gap(policy.model, LONG, engine.generate([LONG], FREE, 4, [1])[0]) < 1e-4  # fills the prefix cache
        change(policy.model, "", size=0.02)
        stale = engine.generate([PROMPT], FREE, 4, [1])[0]
        assert gap(policy.model, PROMPT, stale) > 1e-2 and {r.version for r in stale} == {version - 1}
        engine.sync(policy, version)
        for prompt in (PROMPT, LONG):
            found = engine.generate([prompt], FREE, 4, [1])[0]
            assert gap(policy.model, prompt, found) < 1e-4 and {r.version for r in found} == {version}


def test_logprobs_are_those_of_the_distribution_sampled_from(engine):
    model = engine.context.policy.model
    found = engine.generate([PROMPT], Sampling(max_tokens=16, temperature=0.7), 4, [1])[0]
    assert gap(model, PROMPT, found, temperature=0.7) < 1e-4
    greedy = engine.generate([PROMPT], Sampling(max_tokens=16, temperature=0.0), 2, [1])[0]
    assert gap(model, PROMPT, greedy) < 1e-4 and greedy[0] == greedy[1]


def test_a_sample_depends_on_its_seed_and_number_alone(engine):
    every = engine.generate(PROMPTS, FREE, 4, SEEDS)
    assert engine.generate(PROMPTS[3:4], FREE, 4, SEEDS[3:4])[0] == every[3]
    ids = [r.ids for row in every for r in row if len(r.ids) > 4]  # shorter ones may agree by chance
    assert len(set(ids)) == len(ids) > 4
    for rollout in (r for row in every for r in row):
        assert rollout.truncated == (rollout.ids[-1] not in STOPS) and not set(STOPS) & set(rollout.ids[:-1])


def test_killed_it_is_replaced_and_what_is_missing_is_asked_for_again(engine, monkeypatch):
    before, started = engine.generate(PROMPTS, FREE, 4, SEEDS), engine.fleet.started[0]
    victims, asked, answered, choices = processes(engine), [], [], Servers.choices

    async def counted(self, server, loads, body, largest):
        asked.append((tuple(body["prompt"]), body["seed"], body["n"]))
        if len(asked) == 3 and len(answered) < 3:
            victims[0].kill()
        found = await choices(self, server, loads, body, largest)
        answered.append((tuple(body["prompt"]), body["seed"], body["n"]))
        return found

    monkeypatch.setattr(Servers, "choices", counted)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert engine.generate(PROMPTS, FREE, 4, SEEDS) == before
    assert engine.fleet.started[0] == started + 1 and any("left out" in str(w.message) for w in said)
    assert sorted(answered) == sorted(set(answered)) and len(answered) == len(PROMPTS)  # nothing twice, nothing missing
    assert len(asked) <= 2 * len(PROMPTS)
    assert not [p for p in victims if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert gap(engine.context.policy.model, LONG, engine.generate([LONG], FREE, 2, [1])[0]) < 1e-4


def test_a_run_samples_from_it(engine, tmp_path, monkeypatch):
    """Another model folder of the same architecture: what a server was started with says nothing about its weights."""
    monkeypatch.setenv("LLMRL_SERVER_TOKEN", engine.fleet.token)
    result = trained(
        tmp_path,
        model={"make": {"name": "tiny", **SHAPE}},
        algorithm={"name": "grpo"},
        scorers=["judges:varied"],
        rollout={"engine": {"name": "vllm_server", "urls": engine.fleet.urls}},
        training={"steps": 3, "learning_rate": 1e-2},
    )
    gaps = [row["rollout/logprob_gap_max"] for row in rows(result.folder, "rollout/logprob_gap_max")]
    assert len(gaps) == 3 and max(gaps) < 1e-4
    assert [{r["version"] for r in stored_rollouts(result.folder, step)} for step in (1, 2, 3)] == [{0}, {1}, {2}]


def test_a_run_samples_from_it_ahead_of_training(engine, tmp_path, monkeypatch):
    monkeypatch.setenv("LLMRL_SERVER_TOKEN", engine.fleet.token)
    result = trained(
        tmp_path,
        model={"make": {"name": "tiny", **SHAPE}},
        algorithm={"name": "tis"},
        scorers=["judges:varied"],
        rollout={"engine": {"name": "vllm_server", "urls": engine.fleet.urls}, "staleness": 2},
        training={"steps": 4, "learning_rate": 1e-2},
    )
    assert [{r["version"] for r in stored_rollouts(result.folder, step)} for step in (1, 2, 3, 4)] == [
        {0},
        {0},
        {0},
        {2},
    ]
    found = rows(result.folder, "rollout/staleness")
    assert found[0]["rollout/logprob_gap_max"] < 1e-4
    assert all(row["rollout/stale_gap_mean"] > 1e-3 for row in found[1:])
