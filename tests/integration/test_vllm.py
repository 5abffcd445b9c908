"""The real vLLM against transformers on a tiny Qwen3: same tokens, same weights, same numbers."""

import contextlib
import copy
import json
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

pytest.importorskip("vllm")

from llmrl.errors import RolloutError
from llmrl.policy.forward import PolicyModule
from llmrl.policy.model import Policy as TrainedPolicy
from llmrl.rollout import vllm as vllm_module
from llmrl.rollout.engine import Context
from llmrl.rollout.transformers import TransformersEngine
from llmrl.rollout.vllm import VllmEngine, _rollout
from llmrl.rollout.vllm_process import caller_state
from llmrl.types import Prompt, Sampling

pytestmark = pytest.mark.vllm

STOP_IDS = (7, 11)
FREE = Sampling(max_tokens=16)
HOSTILE = {"do_sample": True, "top_k": 1, "temperature": 0.1, "repetition_penalty": 1.3, "eos_token_id": 5}
PROMPT = Prompt(id="short", ids=(20, 21, 22, 23))
LONG = Prompt(id="long", ids=tuple(20 + i % 100 for i in range(300)))  # two full cache blocks of 128


class Policy:
    """What an engine sees of a policy, without llmrl.policy."""

    def __init__(self, model, path, weights=None):
        self.model, self.path, self.weights = model, path, weights or (lambda: model.state_dict())
        self.whole = contextlib.nullcontext

    def named_weights(self):
        yield from self.weights().items()

    def trained_names(self):
        return set(self.weights())


def model_folder(folder, tied):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=128,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=128,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        initializer_range=0.1,
        eos_token_id=5,
    )
    model = Qwen3ForCausalLM(config).eval()
    model.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(HOSTILE))
    return model


@pytest.fixture(scope="module", params=["tied", "untied"])
def world(request, tmp_path_factory):
    """(engine, policy). The untied one runs inside a process group of the caller's, the tied one without any."""
    folder = tmp_path_factory.mktemp(request.param)
    model = model_folder(folder, tied=request.param == "tied")
    policy = Policy(model, str(folder))
    callers = request.param == "untied"
    if callers:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    context = Context(policy, range(128), STOP_IDS, max_prompt_tokens=320, max_tokens=32)
    launched = {name: os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE")}
    engine = VllmEngine(context, kv_cache_megabytes=16)
    # accelerate, set up after this, would take them for a launcher's
    assert launched == {name: os.environ.get(name) for name in launched}
    yield engine, policy
    engine.close()
    assert dist.is_initialized() == callers
    if callers:
        total = torch.ones(1)
        dist.all_reduce(total)
        assert total.item() == 1.0
        dist.destroy_process_group()


@pytest.fixture
def fresh(world):
    """(engine, policy) with new weights in both, so that no test sees another's."""
    engine, policy = world
    change(policy.model, "")
    engine.sync(policy, 1)
    return engine, policy


@torch.no_grad()
def change(model, kind, size=0.05):
    found = [p for name, p in model.named_parameters() if kind in name]
    assert found, kind
    for parameter in found:
        parameter.add_(torch.randn_like(parameter) * size)


@torch.no_grad()
def next_logits(model, ids):
    return model(torch.tensor([ids])).logits[0, -1]


@torch.no_grad()
def gap(model, prompt, rollouts, temperature=1.0):
    """Largest |engine's log-prob - transformers'| over the rollouts of one prompt."""
    worst = 0.0
    for rollout in rollouts:
        logits = model(torch.tensor([prompt.ids + rollout.ids])).logits[0, len(prompt.ids) - 1 : -1]
        expected = (logits / temperature).log_softmax(-1).gather(-1, torch.tensor(rollout.ids)[:, None])[:, 0]
        worst = max(worst, (expected - torch.tensor(rollout.logprobs)).abs().max().item())
    return worst


def test_logprobs_follow_the_policy_and_only_at_a_sync(fresh):
    engine, policy = fresh
    old = copy.deepcopy(policy.model)
    assert gap(old, PROMPT, engine.generate([PROMPT], FREE, 4, [1])[0]) < 1e-4
    change(policy.model, "")
    rollouts = engine.generate([PROMPT], FREE, 4, [1])[0]  # not synced yet: still the old weights, not shared memory
    assert gap(old, PROMPT, rollouts) < 1e-4 < 1e-2 < gap(policy.model, PROMPT, rollouts)
    engine.sync(policy, 2)
    rollouts = engine.generate([PROMPT], FREE, 4, [1])[0]
    assert gap(policy.model, PROMPT, rollouts) < 1e-4
    assert {r.version for r in rollouts} == {2}


def test_every_kind_of_weight_arrives(fresh):
    engine, policy = fresh
    kinds = ["embed", "input_layernorm", "post_attention_layernorm", "q_norm", "k_norm", "model.norm"]
    kinds += ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    tied = policy.model.config.tie_word_embeddings
    for kind in kinds if tied else [*kinds, "lm_head"]:
        old = copy.deepcopy(policy.model)
        change(policy.model, kind, size=0.2)
        engine.sync(policy, 1)
        rollouts = engine.generate([PROMPT], FREE, 2, [1])[0]
        assert gap(policy.model, PROMPT, rollouts) < 1e-4 < 1e-3 < gap(old, PROMPT, rollouts), kind


def test_prefix_cache_does_not_outlive_the_weights(fresh, monkeypatch):
    engine, policy = fresh
    engine.generate([LONG], FREE, 1, [1])
    change(policy.model, "")
    with monkeypatch.context() as patch:
        patch.setattr(engine.llm, "reset_prefix_cache", lambda: True)
        engine.sync(policy, 2)
    assert gap(policy.model, LONG, engine.generate([LONG], FREE, 1, [1])[0]) > 1e-2  # what staleness looks like
    engine.sync(policy, 3)
    assert gap(policy.model, LONG, engine.generate([LONG], FREE, 1, [1])[0]) < 1e-4


def test_folders_generation_config_changes_nothing(fresh):
    engine, policy = fresh
    rollouts = engine.generate([PROMPT], Sampling(max_tokens=1), 4000, [3])[0]
    frequencies = torch.bincount(torch.tensor([r.ids[0] for r in rollouts]), minlength=128) / 4000
    probabilities = next_logits(policy.model, PROMPT.ids).softmax(-1)
    # 4000 draws over at most 128 outcomes stray by sqrt(128 / (2 pi 4000)) = 0.07 in total variation; top_k 1 gives 0.9
    assert (frequencies - probabilities).abs().sum() / 2 < 0.1
    assert gap(policy.model, PROMPT, rollouts[:20]) < 1e-4
    answers = engine.generate([PROMPT], Sampling(max_tokens=32), 64, [3])[0]
    assert any(5 in r.ids[:-1] for r in answers)  # its eos_token_id is not one of ours


def test_logprobs_are_those_of_the_distribution_sampled_from(fresh):
    engine, policy = fresh
    rollouts = engine.generate([PROMPT], Sampling(max_tokens=16, temperature=0.7), 4, [1])[0]
    assert gap(policy.model, PROMPT, rollouts, temperature=0.7) < 1e-4
    logits = next_logits(policy.model, PROMPT.ids)
    values, tokens = logits.topk(3)
    expected = dict(zip(tokens.tolist(), values.log_softmax(-1).tolist(), strict=True))
    for rollout in engine.generate([PROMPT], Sampling(max_tokens=1, top_k=3), 16, [1])[0]:
        assert rollout.logprobs[0] == pytest.approx(expected[rollout.ids[0]], abs=1e-4)


def test_seed_decides_and_samples_differ(fresh):
    engine, _ = fresh
    twin = Prompt(id="twin", ids=PROMPT.ids)
    ids = [[r.ids for r in row] for row in engine.generate([PROMPT, twin], FREE, 8, [4, 5])]
    assert len(set(ids[0] + ids[1])) == 16  # neighbouring seeds share no sample either
    again = engine.generate([LONG, twin], FREE, 8, [9, 5])
    assert [r.ids for r in again[1]] == ids[1]  # whatever else is in the call


def test_exactly_the_stop_tokens_end_an_answer(fresh):
    engine, _ = fresh
    rollouts = engine.generate([PROMPT], Sampling(max_tokens=32), 128, [1])[0]
    assert {r.ids[-1] for r in rollouts if not r.truncated} == set(STOP_IDS)
    assert any(r.truncated for r in rollouts)
    for rollout in rollouts:
        assert not set(STOP_IDS) & set(rollout.ids[:-1])
        assert len(rollout.ids) == len(rollout.logprobs) <= 32
        assert rollout.truncated == (rollout.ids[-1] not in STOP_IDS)
        assert not rollout.truncated or len(rollout.ids) == 32


@pytest.mark.parametrize("limits", [{}, {"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.8}, {"temperature": 0.0}])
def test_answers_are_those_of_the_transformers_engine(fresh, limits):
    engine, _ = fresh
    other = TransformersEngine(engine.context)
    found, expected = (e.generate([PROMPT, LONG], Sampling(24, **limits), 6, [3, 3]) for e in (engine, other))
    assert [[r.ids for r in rs] for rs in found] == [[r.ids for r in rs] for rs in expected]


def test_more_prompts_than_vllm_reads_at_once(fresh):
    engine, policy = fresh
    room = engine.llm.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens
    prompts = [Prompt(str(i), ids=(20 + i, *LONG.ids[:-1])) for i in range(2 * room // 300)]
    rows = engine.generate(prompts, Sampling(4), 1, range(len(prompts)))
    alone = engine.generate(prompts[-1:], Sampling(4), 1, [len(prompts) - 1])
    assert rows[-1][0].ids == alone[0][0].ids
    assert max(gap(policy.model, prompt, row) for prompt, row in zip(prompts, rows, strict=True)) < 1e-4


def test_a_group_is_one_request_and_its_prompt_is_read_once(fresh, monkeypatch):
    engine, _ = fresh
    llm_engine, requests, samples, tokens = engine.llm.llm_engine, [], [], []
    add, add_sample, core = llm_engine.add_request, llm_engine.engine_core.add_request, llm_engine.engine_core
    scheduler = core.engine_core.scheduler
    schedule = scheduler.schedule

    def scheduled(*args):
        step = schedule(*args)
        tokens.append(step.total_num_scheduled_tokens)
        return step

    monkeypatch.setattr(llm_engine, "add_request", lambda *a, **k: requests.append(a[2].n) or add(*a, **k))
    monkeypatch.setattr(core, "add_request", lambda request: samples.append(request) or add_sample(request))
    monkeypatch.setattr(scheduler, "schedule", scheduled)
    engine.generate([LONG, PROMPT], FREE, 8, [1, 2])
    # vLLM makes a group's samples out of its one request; they share the two full blocks of 128 tokens of the long prompt
    assert requests == [8, 8] and len(samples) == 16
    assert tokens[0] == 300 + 7 * (300 - 256) + 8 * 4


def test_no_prompts_no_answers(fresh):
    assert fresh[0].generate([], FREE, 4, []) == []


def test_groups_are_told_of_as_they_end(fresh):
    engine, _ = fresh
    prompts, told = [PROMPT, LONG, Prompt("third", ids=(30, 31))], []
    rows = engine.generate(prompts, Sampling(32), 2, [1, 2, 3], told.append)
    assert len(told) > 1 and sum(map(len, told)) == 3
    assert {place: row for ended in told for place, row in ended.items()} == dict(enumerate(rows))
    drawn = torch.get_rng_state()
    engine.generate(prompts, FREE, 2, [1, 2, 3], lambda ended: torch.rand(1))
    assert not torch.equal(drawn, torch.get_rng_state())  # the caller's work is done under its own generators

    def refuse(ended):
        raise KeyError

    with pytest.raises(KeyError):
        engine.generate(prompts, FREE, 2, [1, 2, 3], refuse)
    again = engine.generate(prompts, Sampling(32), 2, [1, 2, 3])
    assert [[r.ids for r in rs] for rs in again] == [[r.ids for r in rs] for rs in rows]


def test_greedy_is_transformers_greedy(fresh):
    engine, policy = fresh
    rollout = engine.generate([PROMPT], Sampling(max_tokens=24, temperature=0.0), 1, [0])[0][0]
    asked = torch.tensor([PROMPT.ids])
    expected = policy.model.generate(
        asked,
        attention_mask=torch.ones_like(asked),
        do_sample=False,
        max_new_tokens=24,
        eos_token_id=list(STOP_IDS),
        pad_token_id=0,
    )
    assert rollout.ids == tuple(expected[0, len(PROMPT.ids) :].tolist())
    assert gap(policy.model, PROMPT, [rollout]) < 1e-4


def test_adapters_arrive_merged_and_are_missed_when_they_do_not(fresh):
    from peft import LoraConfig, get_peft_model

    engine, policy = fresh
    base = copy.deepcopy(policy.model)
    adapted = get_peft_model(copy.deepcopy(base), LoraConfig(r=4, lora_alpha=16, target_modules="all-linear"))
    change(adapted, "lora_B", size=0.2)

    def merged():
        return copy.deepcopy(adapted).merge_and_unload().state_dict()

    engine.sync(Policy(adapted, policy.path, merged), 2)
    assert gap(adapted, PROMPT, engine.generate([PROMPT], FREE, 2, [1])[0]) < 1e-4
    with pytest.raises(RolloutError, match="away from the policy's"):
        engine.sync(Policy(adapted, policy.path, base.state_dict), 3)


@pytest.mark.parametrize("target", ["q_proj", "down_proj", "all-linear"])
def test_only_what_adapters_change_is_handed_over_again(fresh, monkeypatch, target):
    from peft import LoraConfig, get_peft_model

    engine, policy = fresh
    base = copy.deepcopy(policy.model)
    lora = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear" if target == "all-linear" else [target])
    adapted = TrainedPolicy(PolicyModule(get_peft_model(base, lora)), None, policy.path)
    handed: list[str] = []

    def load(worker, weights):
        kept = list(weights)
        handed[:] = [name for name, _ in kept]
        return load_in_place(worker, kept)

    load_in_place = vllm_module.load_in_place
    monkeypatch.setattr(vllm_module, "load_in_place", load)
    engine.sync(adapted, 2)
    assert set(handed) == {name for name, _ in adapted.named_weights()}
    for version in (3, 4):
        change(adapted.model, "lora_B", size=0.2)
        engine.sync(adapted, version)
        blocks = {"q_proj": ["self_attn"], "down_proj": ["mlp"], "all-linear": ["self_attn", "mlp"]}[target]
        assert set(handed) == {n for n, _ in adapted.named_weights() if any(block in n for block in blocks)}
        assert gap(adapted.model, PROMPT, engine.generate([PROMPT], FREE, 2, [1])[0]) < 1e-4
    engine.sync(policy, 5)
    assert set(handed) == set(policy.model.state_dict())  # another policy: everything
    if target == "q_proj":  # half of a fused matrix does not do
        engine.sync(adapted, 6)
        monkeypatch.setattr(vllm_module, "_block", lambda name: name)
        with pytest.raises(RolloutError, match="away from the policy's"):
            engine.sync(adapted, 7)


def test_a_sync_that_failed_is_followed_by_a_whole_one(fresh):
    engine, policy = fresh
    change(policy.model, "")
    right = policy.weights
    policy.weights = lambda: {k: v for k, v in right().items() if k != "lm_head.weight"}
    with pytest.raises(RolloutError, match="lm_head.weight too"):
        engine.sync(policy, 2)
    assert engine.loaded is None
    policy.weights = right
    engine.sync(policy, 3)
    assert engine.loaded is policy


def test_names_of_what_is_trained(fresh):
    _, policy = fresh
    whole = TrainedPolicy(PolicyModule(copy.deepcopy(policy.model)), None, policy.path)
    assert whole.trained_names() == {name for name, _ in whole.named_weights()}


def test_a_missing_weight_is_noticed(fresh):
    engine, policy = fresh
    change(policy.model, "")
    without_head = {k: v for k, v in policy.model.state_dict().items() if k != "lm_head.weight"}
    with pytest.raises(RolloutError, match="lm_head.weight too"):
        engine.sync(Policy(policy.model, policy.path, lambda: without_head), 2)


def test_sync_leaves_the_policy_in_its_mode(fresh):
    engine, policy = fresh
    policy.model.train()
    engine.sync(policy, 2)
    assert policy.model.training
    policy.model.eval()


def test_trainers_generators_and_threads_are_untouched(fresh):
    engine, _ = fresh
    assert torch.set_num_threads.__module__ != "vllm.v1.worker.cpu_worker"
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    engine.generate([PROMPT], FREE, 2, [1])
    assert torch.equal(state, torch.get_rng_state()) and torch.get_num_threads() == threads
    with pytest.raises(KeyError), caller_state():
        torch.set_num_threads, kept = None, torch.set_num_threads
        torch.rand(1)
        raise KeyError
    assert torch.set_num_threads is kept and torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("prompt", "sampling", "said"),
    [
        (Prompt(id="p9", ids=(20,) * 337), FREE, "prompt p9: 337 tokens, expected 1 to 336"),
        (Prompt(id="p9"), FREE, "prompt p9: 0 tokens"),
        (PROMPT, Sampling(max_tokens=4, temperature=0.005), "would be raised to 0.01"),
    ],
)
def test_what_vllm_cannot_do_is_refused(world, prompt, sampling, said):
    with pytest.raises(RolloutError, match=said):
        world[0].generate([prompt], sampling, 1, [0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"logprobs": SimpleNamespace(logprobs=[-1.0], token_ids=[20])}, "2 tokens but 1 log-probs"),
        ({"logprobs": SimpleNamespace(logprobs=[-1.0, math.nan], token_ids=[20, 7])}, "not finite"),
        ({"finish_reason": "length"}, "by 'length' on"),
        ({"token_ids": [20, 21], "logprobs": SimpleNamespace(logprobs=[-1.0, -1.0], token_ids=[20, 21])}, "by 'stop'"),
    ],
)
def test_malformed_answers_are_refused(change, said):
    good = {
        "token_ids": [20, 7],
        "logprobs": SimpleNamespace(logprobs=[-1.0, -2.0], token_ids=[20, 7]),
        "finish_reason": "stop",
    }
    assert _rollout("p1", SimpleNamespace(**good), STOP_IDS, 3).ids == (20, 7)
    with pytest.raises(RolloutError, match=said):
        _rollout("p1", SimpleNamespace(**good | change), STOP_IDS, 3)


def test_what_vllm_cannot_start_says_the_next_move(tmp_path):
    context = Context(Policy(None, str(tmp_path)), range(128), STOP_IDS, 320, 32)
    with pytest.raises(RolloutError, match="(?s)could not start with .*use rollout.engine: transformers"):
        VllmEngine(context)
    with pytest.raises(RolloutError, match="tensor_parallel is 2, but 1 processes"):
        VllmEngine(context, tensor_parallel=2)


TWO_RANKS = """
import os, sys, pathlib, torch, torch.distributed as dist
from tests.integration.test_vllm import *
from tests.integration.test_vllm_temperature import varied
dist.init_process_group("gloo")
rank, folder, shared = dist.get_rank(), pathlib.Path(sys.argv[1]), int(sys.argv[2])
policy = Policy(model_folder(folder, tied=True), str(folder))  # written by rank 0 alone
dist.barrier()
context = Context(policy, range(128), STOP_IDS, 320, 32, per_token=True)
engine = VllmEngine(context, kv_cache_megabytes=16, tensor_parallel=shared)
change(policy.model, "")
for parameter in policy.model.parameters():
    dist.broadcast(parameter.data, 0)
engine.sync(policy, 1)
prompts = [PROMPT, LONG] if rank else [LONG]
rows = engine.generate(prompts, FREE, 3, [rank] * len(prompts))
for prompt, row in zip(prompts, rows, strict=True):
    assert len(row) == 3 and gap(policy.model, prompt, row) < 1e-4, (rank, prompt.id)
for prompt, row in zip(prompts, engine.generate(prompts, varied(16), 3, [rank] * len(prompts)), strict=True):
    for rollout in row:
        assert gap(policy.model, prompt, [rollout], torch.tensor(rollout.temperatures)[:, None]) < 1e-4, (rank, prompt.id)
engine.close()
total = torch.ones(1)
dist.all_reduce(total)
assert total.item() == 2.0
print("rank", rank, "fine")
"""


@pytest.mark.processes
@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_two_ranks(tmp_path, tensor_parallel):
    (tmp_path / "ranks.py").write_text(TWO_RANKS)
    command = ["timeout", "900", sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, str(tmp_path / "ranks.py"), str(tmp_path), str(tensor_parallel)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.count("fine") == 2, done.stderr[-3000:]
