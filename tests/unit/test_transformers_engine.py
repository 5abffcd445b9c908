import pytest
import torch
from torch.testing import assert_close
from transformers import GenerationConfig, MistralConfig, MistralForCausalLM

from llmrl.errors import RolloutError
from llmrl.policy.forward import PolicyModule, Rows
from llmrl.policy.model import Policy
from llmrl.rollout.draw import uniforms
from llmrl.rollout.engine import Context
from llmrl.rollout.transformers import COMPACT_BELOW, TransformersEngine, sample
from llmrl.types import Prompt, Sampling

PROMPTS = [Prompt("a", ids=(5, 20, 33, 47, 9, 60, 71)), Prompt("b", ids=(12,)), Prompt("c", ids=(90, 91, 17, 44))]
SEEDS = [11, 12, 13]
STOPS = (2, 24, 59, 101)


@pytest.fixture
def policy(make_policy):
    return make_policy()


@pytest.fixture
def engine(policy):
    return TransformersEngine(Context(policy, policy.tokenizer, STOPS, 16, 32))


def distribution(model, ids, temperature=1.0):
    """Of the next token, by the model's own forward."""
    return (model(input_ids=torch.tensor([list(ids)])).logits[0, -1] / temperature).softmax(-1).detach()


def greedy(model, ids, stops, count):
    out = model.generate(
        torch.tensor([list(ids)]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        do_sample=False,
        max_new_tokens=count,
        eos_token_id=list(stops),
        pad_token_id=0,
    )
    return tuple(out[0, len(ids) :].tolist())


def test_greedy_equals_generate_whichever_stop_token_comes(policy):
    """Tokens that greedy decoding says somewhere serve as two stop tokens in turn."""
    said = [greedy(policy.model, p.ids, (127,), 20) for p in PROMPTS]
    lengths = set()
    for stops in [(said[0][4], said[1][9]), (said[1][2], said[2][15]), (said[2][0], said[0][11])]:
        engine = TransformersEngine(Context(policy, policy.tokenizer, stops, 16, 32))
        found = engine.generate(PROMPTS, Sampling(20, temperature=0.0), 1, SEEDS)
        for prompt, (rollout,) in zip(PROMPTS, found, strict=True):
            assert rollout.ids == greedy(policy.model, prompt.ids, stops, 20)
            assert rollout.truncated == (rollout.ids[-1] not in stops)
            assert not set(rollout.ids[:-1]) & set(stops)
            lengths.add(len(rollout.ids))
    assert len(lengths) > 3


def test_greedy_beyond_a_sliding_window():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MistralForCausalLM(
            MistralConfig(
                vocab_size=128,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                sliding_window=4,
            )
        ).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, 0 if parameter.dim() > 1 else 1, 0.25)
    engine = TransformersEngine(Context(Policy(PolicyModule(model), None, ""), None, (2,), 16, 32))
    for prompt in PROMPTS:  # one by one, as padding of a group reaches into generate's own window
        ((rollout,),) = engine.generate([prompt], Sampling(16, temperature=0.0), 1, [0])
        assert rollout.ids == greedy(model, prompt.ids, (2,), 16)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_logprobs_are_those_of_the_trainers_forward(policy, engine, temperature):
    found = engine.generate(PROMPTS, Sampling(24, temperature=temperature), 4, SEEDS)
    pairs = [(p, r) for p, rs in zip(PROMPTS, found, strict=True) for r in rs]
    rows = Rows(
        [p.ids for p, _ in pairs],
        [r.ids for _, r in pairs],
        [(True,) * len(r.ids) for _, r in pairs],
        [temperature or 1.0] * len(pairs),
    )
    with torch.no_grad():
        expected = policy.module(rows, 24)["logprobs"]
    assert temperature == 0 or len({len(r.ids) for _, r in pairs}) > 3
    for (_, rollout), numbers in zip(pairs, expected, strict=True):
        assert len(rollout.logprobs) == len(rollout.ids)
        assert_close(torch.tensor(rollout.logprobs), numbers[: len(rollout.ids)], rtol=1e-5, atol=1e-5)


def chi_square(counts, expected):
    return float(((counts - expected) ** 2 / expected).sum())


def test_sampled_frequencies_are_softmax_at_the_temperature(policy):
    num, prompt = 20_000, PROMPTS[0]
    engine = TransformersEngine(Context(policy, policy.tokenizer, (2,), 16, 32))
    (rollouts,) = engine.generate([prompt], Sampling(1, temperature=0.7), num, [5])
    counts = torch.bincount(torch.tensor([r.ids[0] for r in rollouts]), minlength=128).float()
    likely = distribution(policy.model, prompt.ids, 0.7) * num > 5

    def distance(temperature):
        expected = num * distribution(policy.model, prompt.ids, temperature)
        return chi_square(counts[likely], expected[likely])

    freedom = int(likely.sum())
    bound = freedom + 4 * (2 * freedom) ** 0.5  # four standard deviations of chi-square
    assert freedom > 30 and distance(0.7) < bound < distance(0.75) and distance(0.65) > bound


@pytest.mark.parametrize(
    "limits, allowed",
    [
        ({"top_k": 5}, lambda p: p.topk(5).indices),
        (
            {"top_p": 0.6},
            lambda p: p.argsort(descending=True)[: int((p.sort(descending=True).values.cumsum(0) < 0.6).sum()) + 1],
        ),
    ],
)
def test_truncated_sampling_stays_inside_and_reports_what_it_sampled_from(policy, engine, limits, allowed):
    prompt = PROMPTS[0]
    (rollouts,) = engine.generate([prompt], Sampling(1, temperature=0.9, **limits), 2000, [3])
    spread = distribution(policy.model, prompt.ids, 0.9)
    inside = set(allowed(spread).tolist())
    said = {r.ids[0]: r.logprobs[0] for r in rollouts}
    assert set(said) <= inside and len(said) > len(inside) // 2 and len(inside) < 40
    total = sum(float(spread[i]) for i in inside)
    for token, logprob in said.items():
        assert logprob == pytest.approx(float((spread[token] / total).log()), abs=1e-4)


def test_seeds_decide_and_samples_differ(engine):
    sampling = Sampling(12)
    first, again = (engine.generate(PROMPTS, sampling, 3, SEEDS) for _ in range(2))
    assert first == again
    assert all(len({r.ids for r in rollouts}) == 3 for rollouts in first)
    other = engine.generate(PROMPTS, sampling, 3, [s + 1 for s in SEEDS])
    assert not {r.ids for rs in first for r in rs} & {r.ids for rs in other for r in rs}


def test_neighbouring_seeds_and_samples_share_no_noise():
    noise = uniforms([0, 1, 2], 3, 4)
    assert noise.shape == (9, 4) and len(set(noise.flatten().tolist())) == 36
    assert torch.equal(noise[4], uniforms([1], 2, 9)[1, :4])


def test_a_sample_depends_on_nothing_else_in_the_call(policy, engine):
    sampling = Sampling(24)
    among = engine.generate(PROMPTS, sampling, 6, SEEDS)
    small = TransformersEngine(engine.context, max_rows=6)
    for prompts, seeds in ((PROMPTS[::-1], SEEDS[::-1]), (PROMPTS[1:], SEEDS[1:])):
        for other in (engine, small):
            for prompt, rollouts in zip(prompts, other.generate(prompts, sampling, 6, seeds), strict=True):
                expected = among[PROMPTS.index(prompt)]
                assert [r.ids for r in rollouts] == [r.ids for r in expected]
    fewer = engine.generate(PROMPTS, sampling, 2, SEEDS)
    assert [[r.ids for r in rs] for rs in fewer] == [[r.ids for r in rs[:2]] for rs in among]


@pytest.mark.parametrize("shares", [True, False])
def test_prompts_are_prefilled_once_and_finished_rows_leave(policy, engine, shares):
    engine.shares, forwarded = shares, []
    policy.model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: forwarded.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    found = engine.generate(PROMPTS, Sampling(32), 8, SEEDS)
    lengths = [len(r.ids) for rollouts in found for r in rollouts]
    alive = [sum(n > t for n in lengths) for t in range(1, max(lengths))]
    assert forwarded[0] == (3, 7)  # three prompts, not twenty-four
    assert {min(shape) for shape in forwarded[1:]} == {1}
    fed = [max(shape) for shape in forwarded[1:]]  # one token of each row
    for rows, needed in zip(fed, alive, strict=True):  # and nothing after the last token
        assert needed <= rows <= needed / COMPACT_BELOW
    assert sum(fed) < 0.8 * 24 * len(alive)


def test_the_folders_generation_config_changes_nothing(policy, engine):
    plain = engine.generate(PROMPTS, Sampling(12), 2, SEEDS)
    policy.model.generation_config = GenerationConfig(
        do_sample=False,
        top_k=1,
        top_p=0.1,
        temperature=0.1,
        max_new_tokens=2,
        repetition_penalty=1.3,
        eos_token_id=list(range(128)),
    )
    assert engine.generate(PROMPTS, Sampling(12), 2, SEEDS) == plain


def test_a_policy_that_checkpoints_activations_samples_the_same(make_policy, engine):
    policy = make_policy(config={"gradient_checkpointing": True})
    other = TransformersEngine(Context(policy, policy.tokenizer, STOPS, 16, 32))
    assert other.generate(PROMPTS, Sampling(12), 2, SEEDS) == engine.generate(PROMPTS, Sampling(12), 2, SEEDS)
    assert policy.model.training  # as the trainer left it


@pytest.mark.parametrize("ids", [(), tuple(range(17))])
def test_a_prompt_of_the_wrong_length_is_refused(engine, ids):
    with pytest.raises(RolloutError, match=rf"prompt long: {len(ids)} tokens; expected 1 to 16"):
        engine.generate([Prompt("long", ids=ids)], Sampling(4), 1, [0])


def test_rollouts_carry_the_version_of_the_weights(policy, engine):
    engine.sync(policy, 7)
    assert engine.generate(PROMPTS[:1], Sampling(2), 1, [0])[0][0].version == 7


def test_new_weights_are_there_at_once(policy, engine):
    before = engine.generate(PROMPTS, Sampling(12, temperature=0.0), 1, SEEDS)
    with torch.no_grad():
        policy.model.get_decoder().norm.weight.mul_(-1)
    after = engine.generate(PROMPTS, Sampling(12, temperature=0.0), 1, SEEDS)
    assert all(a[0].ids != b[0].ids for a, b in zip(before, after, strict=True))


def test_noise_of_zero_and_nearly_one_picks_tokens_that_have_probability():
    logits = torch.tensor([[-float("inf"), 0.0, 1.0, -float("inf")]]).repeat(2, 1)
    tokens, logprobs = sample(logits, Sampling(1), torch.tensor([0.0, 1 - 1e-16], dtype=torch.float64))
    assert tokens.tolist() == [1, 2] and logprobs.isfinite().all()
