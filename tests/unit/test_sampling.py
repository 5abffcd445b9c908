"""Temperatures token by token: how they are set, and that sampling and training see the same ones."""

import json
import math
import pickle

import pytest
import torch
from torch.testing import assert_close

from llmrl.errors import RolloutError
from llmrl.policy.forward import Rows
from llmrl.rollout.engine import Context
from llmrl.rollout.tempering import Tempering, tempered
from llmrl.rollout.transformers import TransformersEngine
from llmrl.rollout.vllm import VllmEngine
from llmrl.sampling.hapo import HapoTemperature
from llmrl.sampling.per_token import PerToken
from llmrl.training.assemble import assemble
from llmrl.training.passes import rows_of, run_pass
from llmrl.types import Group, Prompt, Rollout, Sampling

PROMPTS = [Prompt("a", ids=(5, 20, 33, 47, 9, 60, 71)), Prompt("b", ids=(12,)), Prompt("c", ids=(90, 91, 17, 44))]
SEEDS = [11, 12, 13]
STOPS = (2, 24, 59, 101)
WORKED = [
    Rollout((1, 2, 3, 4), "", entropies=(0.01, 0.1, 0.5, 1.0)),
    Rollout((1, 2, 3), "", entropies=(0.02, 0.2, 2.0)),
]
STATE = {"pivot": 0.0, "spread": 2.54571, "highest": 0.27228, "lowest": 1.80899}


class Doubling:
    """A part whose multipliers are far apart, so that a temperature taken from a wrong place cannot hide."""

    def temperatures(self, state, entropies):
        return 0.5 + entropies / 2


@pytest.fixture
def policy(make_policy):
    return make_policy()


@pytest.fixture
def engine(policy):
    return TransformersEngine(Context(policy, policy.tokenizer, STOPS, 16, 32))


def varied(length=24, temperature=0.8, part=None, state=None, **limits):
    part = part or Doubling()
    return Sampling(length, temperature, **limits, per_token=PerToken(part, state or {}, temperature))


# ---------------------------------------------------------------------------------------------- HAPO's temperatures


def test_hapo_scale_and_temperatures_of_the_worked_batch():
    part = HapoTemperature()
    _, state = part.apply(part.init(), WORKED)
    assert state == pytest.approx(STATE, abs=5e-6)
    found = part.temperatures(state, torch.tensor([0.05, 1.0, 1.5]))
    assert_close(found, torch.tensor([0.967474, 1.0, 1.02925]), rtol=0, atol=5e-6)


def test_hapo_by_a_slow_loop():
    generator = torch.Generator().manual_seed(1)
    entropies = (torch.randn(501, generator=generator) * 2).exp()
    part = HapoTemperature(tau=0.2, quantile=0.3)
    _, state = part.apply({}, [Rollout(tuple(range(501)), "", entropies=tuple(entropies.tolist()))])
    logs = [math.log(h) for h in entropies.tolist()]
    pivot = sorted(logs)[150]
    sigma = math.sqrt(sum((x - pivot) ** 2 for x in logs) / 501)
    units = [(x - pivot) / sigma for x in logs]
    expected = [1 + 0.2 * (u / max(units) if u > 0 else u / abs(min(units))) for u in units]
    assert_close(part.temperatures(state, entropies), torch.tensor(expected), rtol=0, atol=2e-6)


def test_hapo_stays_within_tau_and_knows_certain_tokens_from_uncertain_ones():
    part = HapoTemperature()
    _, state = part.apply({}, WORKED)
    found = part.temperatures(state, torch.tensor([0.0, 1e-30, 0.02, 0.9, 1.1, 50.0]))
    assert_close(found[[0, 1, 5]], torch.tensor([0.95, 0.95, 1.05]))
    assert (found[2:4] < 1).all() and found[4] > 1 and (found.diff() >= 0).all()


def test_hapo_leaves_the_temperature_alone_in_the_first_batch_and_after_one_without_spread():
    part = HapoTemperature()
    for rollouts in ([], [Rollout((1, 2), "", entropies=(0.7, 0.7))], [Rollout((), "", entropies=())]):
        _, state = part.apply(part.init(), rollouts)
        assert state == {}
        assert torch.equal(part.temperatures(state, torch.tensor([0.0, 3.0])), torch.ones(2))
    assert part.apply(STATE, []) == (None, STATE)  # nothing sampled, nothing learnt


def test_hapo_reads_what_the_policy_wrote_and_skips_greedy_probes():
    part = HapoTemperature()
    rows = [
        Rollout((1, 2, 8, 3, 4), "", loss_mask=(True, True, False, True, True), entropies=(0.01, 0.1, 9.0, 0.5, 1.0)),
        WORKED[1],
        Rollout((7, 7), "", probe=True),
    ]
    assert part.apply({}, rows) == part.apply({}, WORKED)


def test_hapo_refuses_an_engine_that_reports_no_entropies():
    with pytest.raises(RolloutError, match="reported no entropies"):
        HapoTemperature().apply({}, [*WORKED, Rollout((1,), "")])


def test_hapo_memory_is_plain_data_never_changed_in_place():
    part, state = HapoTemperature(), {}
    _, after = part.apply(state, WORKED)
    assert state == {} and json.loads(json.dumps(after)) == after
    again = json.loads(json.dumps(after))
    entropies = torch.rand(50)
    assert torch.equal(part.temperatures(after, entropies), part.temperatures(again, entropies))
    assert part.apply(after, WORKED[:1])[1] != after and part.apply(after, WORKED)[1] == after


def test_what_the_engine_calls_knows_entropies_and_can_be_pickled():
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)) * 3
    logits[1, 3:] = -math.inf
    logits[2] = 0.0
    call = pickle.loads(pickle.dumps(PerToken(HapoTemperature(), STATE, 0.6)))  # noqa: S301 - our own bytes
    temperatures, entropies = call(logits)
    assert_close(entropies, torch.distributions.Categorical(logits=logits).entropy())
    assert entropies[2] == pytest.approx(math.log(40))
    assert_close(temperatures, 0.6 * HapoTemperature().temperatures(STATE, entropies))


# ---------------------------------------------------------------------------------------------- transformers engine


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_multipliers_of_one_change_nothing(engine, temperature):
    """Bit for bit: the first batch of HAPO is plain sampling."""
    plain = engine.generate(PROMPTS, Sampling(24, temperature), 4, SEEDS)
    found = engine.generate(PROMPTS, varied(24, temperature, HapoTemperature()), 4, SEEDS)
    for one, other in zip(sum(plain, []), sum(found, []), strict=True):
        assert (one.ids, one.logprobs) == (other.ids, other.logprobs)
        assert one.temperatures is None and one.entropies is None
        assert other.temperatures == pytest.approx((temperature,) * len(other.ids))


def test_greedy_takes_no_temperature(engine):
    plain = engine.generate(PROMPTS, Sampling(24, 0.0), 1, SEEDS)
    assert engine.generate(PROMPTS, varied(24, 0.0), 1, SEEDS) == plain


@pytest.mark.parametrize("max_rows", [256, 4])
def test_reported_numbers_are_those_of_the_models_own_forward(policy, max_rows):
    """Rows leave the batch as they finish, so a temperature kept for a wrong row or token would show."""
    engine = TransformersEngine(Context(policy, policy.tokenizer, STOPS, 16, 32), max_rows=max_rows)
    for prompt, rollouts in zip(PROMPTS, engine.generate(PROMPTS, varied(), 4, SEEDS), strict=True):
        for rollout in rollouts:
            ids = torch.tensor([prompt.ids + rollout.ids])
            logits = policy.model(input_ids=ids).logits[0, len(prompt.ids) - 1 : -1].detach()
            temperatures, entropies = PerToken(Doubling(), {}, 0.8)(logits)
            chosen = torch.tensor(rollout.ids)[:, None]
            expected = (logits / temperatures[:, None]).log_softmax(-1).gather(-1, chosen)[:, 0]
            for said, right in (
                (rollout.temperatures, temperatures),
                (rollout.entropies, entropies),
                (rollout.logprobs, expected),
            ):
                assert_close(torch.tensor(said), right, rtol=1e-4, atol=1e-4)


def test_tokens_are_drawn_at_the_temperature_that_is_reported(policy):
    engine = TransformersEngine(Context(policy, policy.tokenizer, (2,), 16, 32))
    (rollouts,) = engine.generate(PROMPTS[:1], varied(1, 0.5), 20_000, [5])
    counts = torch.bincount(torch.tensor([r.ids[0] for r in rollouts]), minlength=128).float()
    (temperature,) = {r.temperatures[0] for r in rollouts}
    logits = policy.model(input_ids=torch.tensor([PROMPTS[0].ids])).logits[0, -1].detach()

    def distance(at):
        expected = 20_000 * (logits / at).softmax(-1)
        likely = 20_000 * (logits / temperature).softmax(-1) > 5
        return float(((counts - expected)[likely] ** 2 / expected[likely]).sum()), int(likely.sum())

    found, freedom = distance(temperature)
    assert (
        found < freedom + 4 * (2 * freedom) ** 0.5 < min(distance(0.9 * temperature)[0], distance(1.1 * temperature)[0])
    )


def test_truncation_applies_at_the_tokens_temperature(policy, engine):
    (rollouts,) = engine.generate(PROMPTS[:1], varied(1, 0.9, top_k=5), 200, [3])
    logits = policy.model(input_ids=torch.tensor([PROMPTS[0].ids])).logits[0, -1].detach()
    values, tokens = logits.topk(5)
    expected = dict(zip(tokens.tolist(), (values / rollouts[0].temperatures[0]).log_softmax(-1).tolist(), strict=True))
    for rollout in rollouts:
        assert rollout.logprobs[0] == pytest.approx(expected[rollout.ids[0]], abs=1e-4)


# ---------------------------------------------------------------------------------------------- through the trainer


def batch_of(rollouts, temperature):
    groups = [Group(p, tuple(rs)) for p, rs in zip(PROMPTS, rollouts, strict=True)]
    places = [(g, i) for g, group in enumerate(groups) for i in range(len(group.rollouts))]
    return assemble(groups, places, [groups[g].prompt for g, _ in places], 0, [], temperature)


def test_the_trainers_pass_agrees_at_the_reported_temperatures(policy, engine):
    """What the monitor of the log-probability gap measures."""
    rollouts = engine.generate(PROMPTS, varied(), 4, SEEDS)
    batch = batch_of(rollouts, 0.8)
    mask, temperatures = batch.arrays["loss_mask"], batch.arrays["temperatures"]
    assert temperatures[mask].std() > 0.1 and (temperatures[~mask] == torch.tensor(0.8)).all()
    found = run_pass(policy, batch, 1_000, entropy=True)
    gap = (found["logprobs"] - batch.arrays["rollout_logprobs"])[mask].abs()
    assert gap.mean() < 2e-6 and gap.max() < 2e-5
    batch.arrays["temperatures"] = torch.full_like(temperatures, 0.8)
    assert (run_pass(policy, batch, 1_000)["logprobs"] - batch.arrays["rollout_logprobs"])[mask].abs().mean() > 0.01


def test_entropy_of_a_pass_is_that_of_the_tempered_distribution(policy, engine):
    rollouts = engine.generate(PROMPTS[:1], varied(), 2, SEEDS[:1])
    batch = batch_of([*rollouts, [], []], 0.8)
    found = run_pass(policy, batch, 1_000, entropy=True)["entropy"]
    for row, rollout in enumerate(rollouts[0]):
        ids = torch.tensor([PROMPTS[0].ids + rollout.ids])
        logits = policy.model(input_ids=ids).logits[0, len(PROMPTS[0].ids) - 1 : -1].detach()
        at = torch.tensor(rollout.temperatures)[:, None]
        expected = torch.distributions.Categorical(logits=logits / at).entropy()
        assert_close(found[row, : len(rollout.ids)], expected, rtol=1e-4, atol=1e-4)


def test_rows_take_one_temperature_or_one_a_token(policy):
    rows = rows_of(batch_of([[Rollout((7, 8, 9), "")], [Rollout((4,), "")], [Rollout((), "")]], 0.7), [0, 1, 2])
    assert rows.temperatures == [pytest.approx([0.7] * 3), pytest.approx([0.7]), []]
    one = Rows(rows.contexts[:2], rows.responses[:2], rows.masks[:2], [0.7, 0.7])
    with torch.no_grad():
        found = [policy.module(some, 3)["logprobs"] for some in (rows, one)]
    assert_close(found[0][:2], found[1], rtol=0, atol=1e-6)


def test_rollouts_without_temperatures_are_trained_at_the_recipes():
    given = Rollout((1, 2), "", temperatures=(0.5, 1.5), entropies=(1.0, 1.0))
    batch = batch_of([[given, Rollout((1, 2, 3), "")], [], []], 0.9)
    assert_close(batch.arrays["temperatures"], torch.tensor([[0.5, 1.5, 0.9], [0.9, 0.9, 0.9]]))
    assert (batch_of([[Rollout((1,), "")], [], []], 0.0).arrays["temperatures"] == 1).all()


# ---------------------------------------------------------------------------------------------- vLLM's side, without it


def test_vllms_side_keeps_the_last_draw_at_a_position_and_misses_none():
    tempering = Tempering()
    tempering.begin(lambda logits: (logits[:, 0].abs(), logits[:, 1].abs()))
    one, other = (0, 40), (0, 41)
    first = torch.tensor([[2.0, 4.0], [4.0, 8.0]])
    assert_close(tempering.divide(first, [(one, 0), (other, 0)]), torch.tensor([[1.0, 2.0], [1.0, 2.0]]))
    tempering.divide(torch.tensor([[3.0, 6.0]]), [(one, 0)])  # a prompt read in two pieces
    tempering.divide(torch.tensor([[5.0, 6.0], [7.0, 8.0]]), [(other, 1), (one, 1)])
    found = tempering.end()
    assert found == {one: {0: (3.0, 6.0), 1: (7.0, 8.0)}, other: {0: (4.0, 8.0), 1: (5.0, 6.0)}}
    assert tempering.end() == {}
    rollout = tempered(Rollout((1, 2), ""), found[one], "p")
    assert (rollout.temperatures, rollout.entropies) == ((3.0, 7.0), (6.0, 8.0))
    with pytest.raises(RolloutError, match="prompt p: vLLM drew token 2"):
        tempered(Rollout((1, 2, 3), ""), found[one], "p")


def test_vllm_built_without_per_token_temperatures_refuses_them():
    engine = object.__new__(VllmEngine)  # its start is what takes vLLM
    engine.context = Context(None, None, STOPS, 16, 32)
    with pytest.raises(RolloutError, match="built without per_token"):
        engine.generate(PROMPTS, varied(), 1, SEEDS)
