"""Per-token temperatures by the real vLLM: drawn, reported and recomputed at the same ones."""

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("vllm")

from llmrl.config import Model
from llmrl.policy.load import load_policy
from llmrl.policy.tiny import tiny
from llmrl.rollout.engine import Context
from llmrl.rollout.vllm import VllmEngine
from llmrl.sampling.hapo import HapoTemperature
from llmrl.sampling.per_token import PerToken
from llmrl.training.assemble import assemble
from llmrl.training.passes import run_pass
from llmrl.types import Group, Prompt, Sampling

pytestmark = pytest.mark.vllm

STOPS = (7, 11)
PROMPTS = [
    Prompt("a", ids=(20, 21, 22, 23)),
    Prompt("b", ids=tuple(20 + i % 100 for i in range(120))),
    Prompt("c", ids=(9,)),
]
SEEDS = [4, 5, 6]
MEGABYTES = 1  # eight blocks of 128 tokens: answers that outgrow their first block have to give way to each other


class Half:
    """Multipliers far apart."""

    def temperatures(self, state, entropies):
        return 0.5 + entropies / 2


def varied(length, temperature=0.8, part=None, state=None, **limits):
    return Sampling(length, temperature, **limits, per_token=PerToken(part or Half(), state or {}, temperature))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(engine, policy) of one set of weights; vLLM's kernels want heads of 32."""
    folder = str(tmp_path_factory.mktemp("tiny"))
    tiny(folder, hidden=128, layers=2, heads=4, kv_heads=2, feed_forward=64)
    policy = load_policy(Model.model_validate({"path": folder}), tmp_path_factory.mktemp("policy"), seed=0)
    with torch.no_grad():  # what is said has to depend on what stands before
        generator = torch.Generator().manual_seed(0)
        for parameter in policy.module.parameters():
            if parameter.dim() > 1:
                parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
    context = Context(policy, policy.tokenizer, STOPS, max_prompt_tokens=128, max_tokens=64, per_token=True)
    engine = VllmEngine(context, kv_cache_megabytes=MEGABYTES)
    yield engine, policy
    engine.close()


def batch_of(rollouts, temperature):
    groups = [Group(p, tuple(rs)) for p, rs in zip(PROMPTS, rollouts, strict=True)]
    places = [(g, i) for g, group in enumerate(groups) for i in range(len(group.rollouts))]
    return assemble(groups, places, [groups[g].prompt for g, _ in places], 0, [], temperature)


def test_the_trainers_pass_agrees_at_the_reported_temperatures(world):
    engine, policy = world
    batch = batch_of(engine.generate(PROMPTS, varied(24), 4, SEEDS), 0.8)
    mask, temperatures = batch.arrays["loss_mask"], batch.arrays["temperatures"]
    assert temperatures[mask].std() > 0.1
    gap = (run_pass(policy, batch, 4_000)["logprobs"] - batch.arrays["rollout_logprobs"])[mask].abs()
    assert gap.mean() < 2e-6 and gap.max() < 2e-5
    batch.arrays["temperatures"] = torch.full_like(temperatures, 0.8)
    assert (run_pass(policy, batch, 4_000)["logprobs"] - batch.arrays["rollout_logprobs"])[mask].abs().mean() > 0.01


def test_reported_temperatures_are_those_of_the_models_own_forward(world):
    engine, policy = world
    part = HapoTemperature(tau=0.5)
    _, state = part.apply({}, [r for rs in engine.generate(PROMPTS, varied(24, part=part), 4, SEEDS) for r in rs])
    found = engine.generate(PROMPTS, varied(24, 0.9, part, state), 4, SEEDS)
    used = [t for rs in found for r in rs for t in r.temperatures]
    assert 0.449 < min(used) < 0.85 and 0.95 < max(used) < 1.351
    for prompt, rollout in ((p, r) for p, rs in zip(PROMPTS, found, strict=True) for r in rs):
        ids = torch.tensor([prompt.ids + rollout.ids])
        logits = policy.model(input_ids=ids).logits[0, len(prompt.ids) - 1 : -1].detach()
        temperatures, entropies = PerToken(part, state, 0.9)(logits)
        assert_close(torch.tensor(rollout.entropies), entropies, rtol=1e-4, atol=1e-4)
        assert_close(torch.tensor(rollout.temperatures), temperatures, rtol=1e-3, atol=1e-4)


def test_multipliers_of_one_change_nothing(world):
    engine, _ = world
    plain = engine.generate(PROMPTS, Sampling(24), 4, SEEDS)
    found = engine.generate(PROMPTS, varied(24, 1.0, HapoTemperature()), 4, SEEDS)
    for one, other in zip(sum(plain, []), sum(found, []), strict=True):
        assert (one.ids, one.logprobs) == (other.ids, other.logprobs)
        assert one.temperatures is None and other.temperatures == (1.0,) * len(other.ids)


def test_greedy_takes_no_temperature(world):
    engine, _ = world
    assert engine.generate(PROMPTS, varied(24, 0.0), 1, SEEDS) == engine.generate(PROMPTS, Sampling(24, 0.0), 1, SEEDS)


def test_tokens_are_drawn_at_the_temperature_that_is_reported(world):
    engine, policy = world
    (rollouts,) = engine.generate(PROMPTS[:1], varied(1, 0.5), 4_000, [3])
    temperature = rollouts[0].temperatures[0]
    counts = torch.bincount(torch.tensor([r.ids[0] for r in rollouts]), minlength=128).float()
    logits = policy.model(input_ids=torch.tensor([PROMPTS[0].ids])).logits[0, -1].detach()

    def distance(at):
        expected = 4_000 * (logits / at).softmax(-1)
        likely = 4_000 * (logits / temperature).softmax(-1) > 5
        return float(((counts - expected)[likely] ** 2 / expected[likely]).sum()), int(likely.sum())

    found, freedom = distance(temperature)
    assert (
        found
        < freedom + 4 * (2 * freedom) ** 0.5
        < min(distance(0.8 * temperature)[0], distance(1.25 * temperature)[0])
    )


def test_answers_that_vllm_interrupts_keep_their_temperatures(world, monkeypatch):
    from vllm.v1.core.sched.scheduler import Scheduler

    engine, policy = world
    interrupted = []
    own = Scheduler._preempt_request
    monkeypatch.setattr(Scheduler, "_preempt_request", lambda *args, **kw: interrupted.append(1) or own(*args, **kw))
    rollouts = engine.generate(PROMPTS, varied(64), 24, SEEDS)
    assert interrupted, "the cache is too large for this test"
    batch = batch_of(rollouts, 0.8)
    gap = (run_pass(policy, batch, 4_000)["logprobs"] - batch.arrays["rollout_logprobs"])[
        batch.arrays["loss_mask"]
    ].abs()
    assert gap.max() < 5e-5
    alone = engine.generate(PROMPTS[1:2], varied(64), 1, SEEDS[1:2])[0][0]
    first = rollouts[1][0]
    assert alone.ids == first.ids and alone.temperatures == pytest.approx(first.temperatures, rel=1e-4)
