"""Every method on a real small policy, through the trainer's own update."""

import math
from dataclasses import replace

import pytest
import torch
from inputs import batch, emptied
from steps import WHOLE, method, prepared, updated

from llmrl import catalog
from llmrl.algorithm import REDUCTIONS
from llmrl.algorithms.ppo import ppo
from llmrl.batch import sources
from llmrl.combinations import UNDIVIDED
from llmrl.errors import TrainingError
from llmrl.ops.masked import last_counted
from llmrl.plan import required
from llmrl.training.passes import rows_of, run_pass
from llmrl.training.ranks import Ranks
from llmrl.training.update import Settings, Updater

SINGLE, SOME = 1, 45  # tokens a micro-batch: one row (or pair) each; a few rows together
AMPLIFIES_ROUNDING = {  # method -> tolerance
    "taypo": 6e-6,  # its second order multiplies small differences of ratios
    "hapo": 3e-5,  # entropies of a few tokens are divided by how far the nearest two are apart
    "vespo": 3e-5,  # the weight is an exponential of a whole answer's log-ratio
}

REWARDS_SAY_WHICH = {"p3o", "rebel"}  # and not the place in the pair, which is random here; see test_objectives_other

methods = pytest.mark.parametrize("name", catalog.table("algorithms"))
modes = pytest.mark.parametrize("mode", REDUCTIONS)


@pytest.fixture
def policy(make_policy):
    return make_policy(values=True, scores=True, action_values=True)


@pytest.fixture
def reference(make_policy):
    return make_policy(seed=1)


def assert_close(found, expected, tolerance=3e-6):
    """The gradients of each step agree, relative to their norm; rounding in fp32 alone makes 1.7e-6 here."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        flat, wanted = (torch.cat([g.flatten() for g in step]) for step in (one, other))
        assert (flat - wanted).norm() <= tolerance * wanted.norm()


@methods
@modes
def test_micro_batches_and_sharing_of_prompts_do_not_matter(name, mode, policy, reference):
    algorithm = method(name, reduce=mode)
    given = prepared(algorithm, policy, reference)
    expected, whole = updated(policy, given, algorithm)
    assert max(float(g.abs().max()) for g in expected[0]) > 1e-3
    for shared in (True, False):
        policy.shared = shared
        forwards = []
        for budget in (WHOLE, SOME, SINGLE):
            before = policy.passes
            found, metrics = updated(policy, given, algorithm, budget)
            forwards.append(policy.passes - before)
            assert_close(found, expected, AMPLIFIES_ROUNDING.get(name, 3e-6))
            for key, number in whole.items():
                assert metrics[key] == pytest.approx(number, rel=1e-4, abs=1e-5), key
        # one for each batch; with noise the gap to the engine is measured by a pass without it
        least = 1 + len(algorithm.extra) + (algorithm.perturb is not None)
        assert forwards[0] == least <= forwards[1] < forwards[2]  # rows without credit are not forwarded


@methods
@modes
def test_rows_without_a_counted_token_are_as_if_they_were_not_there(name, mode, policy, reference):
    algorithm = method(name, reduce=mode)
    given = prepared(algorithm, policy, reference)
    filled = given.arrays["lengths"].nonzero().flatten().tolist()
    assert len(filled) == len(given) - 1
    by_token = given.pairs is None and not {catalog.name_of(part) for part in algorithm.objective} & set(UNDIVIDED)
    if mode == "fixed_length" and algorithm.extra:
        return  # its divisor counts every row, of the rollouts alone: no one number relates the two
    share = 7 / 8 if mode == "fixed_length" and by_token else 1.0
    (whole,), (without,) = updated(policy, given, algorithm)[0], updated(policy, given.take(filled), algorithm)[0]
    assert_close([whole], [[share * g for g in without]])


@methods
def test_nothing_counted_gives_a_zero_gradient(name, policy, reference):
    algorithm = method(name)
    given = prepared(algorithm, policy, reference, replace(emptied(batch()), pairs=batch().pairs))
    (gradients,), metrics = updated(policy, given, algorithm)
    assert all((g == 0).all() for g in gradients)
    assert metrics["gradient/norm"] == 0 and all(math.isfinite(n) for n in metrics.values())


@pytest.mark.parametrize("name", [n for n in catalog.table("algorithms") if n not in REWARDS_SAY_WHICH])
def test_one_step_makes_what_is_credited_more_probable(name, policy, reference):
    algorithm = method(name)
    given = prepared(algorithm, policy, reference)
    mask = given.arrays["loss_mask"]
    if given.pairs is not None:
        both = given.pairs[(given.arrays["lengths"][given.pairs] > 0).all(1)]
        credit = torch.zeros(mask.shape)
        credit[both[:, 0]], credit[both[:, 1]] = 1.0, -1.0
    else:
        credit = given.arrays.get("advantages", torch.ones(mask.shape))
    judged = "scores" in sources(required(algorithm))

    def numbers() -> torch.Tensor:
        if not judged:
            return run_pass(policy, given, WHOLE)["logprobs"]
        with torch.no_grad():
            return policy.statistics(rows_of(given, range(len(given))), mask.shape[1], scores=True)["scores"]

    def credited() -> float:
        return float((numbers() * credit)[mask].sum())

    if judged and given.pairs is not None:
        credit *= last_counted(mask)
    elif judged:
        credit = given.arrays["step_labels"] - numbers().sigmoid()
    before = credited()
    updated(policy, given, algorithm, rate=1e-3, max_norm=1.0)
    assert credited() > before + 1e-4


@methods
def test_a_step_leaves_the_reference_alone(name, policy, reference):
    kept = [p.clone() for p in reference.module.parameters()]
    algorithm = method(name)
    updated(policy, prepared(algorithm, policy, reference), algorithm, rate=0.1)
    for parameter, before in zip(reference.module.parameters(), kept, strict=True):
        assert parameter.grad is None and torch.equal(parameter, before)


@methods
def test_mini_batches_do_not_depend_on_micro_batches(name, policy, reference):
    algorithm = replace(method(name), epochs=2, minibatches=3)
    given = prepared(algorithm, policy, reference)
    expected, metrics = updated(policy, given, algorithm)
    found, _ = updated(policy, given, algorithm, SINGLE)
    assert metrics["update/steps"] == len(expected) == 6  # three prompts, each its own mini-batch, twice
    assert_close(found, expected, AMPLIFIES_ROUNDING.get(name, 3e-6))


def test_preference_loss_is_ln_2_while_the_policy_is_the_reference(policy):
    algorithm = method("dpo")
    given = prepared(algorithm, policy, policy)
    recorder = Updater(policy, torch.optim.SGD([torch.zeros(1)]), Ranks(), Settings(WHOLE, 9, 1.0, 1.0))
    metrics = recorder.measure(given, algorithm)
    assert metrics["loss/dpo"] == pytest.approx(math.log(2), abs=1e-6)
    assert metrics["pairs/margin"] == pytest.approx(0, abs=1e-5)


def test_weights_are_for_the_policy_and_not_for_the_critic(policy, reference):
    algorithm = method("ppo")
    given = prepared(algorithm, policy, reference)
    _, whole = updated(policy, given, algorithm)
    given.arrays["weights"] = torch.zeros(given.arrays["loss_mask"].shape)
    _, silenced = updated(policy, given, algorithm)
    assert silenced["loss/clipped_surrogate"] == 0 != whole["loss/clipped_surrogate"]
    assert silenced["loss/value"] == pytest.approx(whole["loss/value"]) and silenced["gradient/norm"] > 0


def test_without_critic_and_penalty_ppo_is_the_surrogate_of_grpo(policy, reference):
    given = prepared(method("grpo"), policy, reference)
    given.arrays |= {n: torch.zeros(given.arrays["loss_mask"].shape) for n in ("old_values", "returns")}
    plain = method("grpo", reduce="token_mean")
    silent = replace(ppo(value_coef=0.0, kl_coef=0.0), epochs=1, minibatches=1)
    assert_close(updated(policy, given, silent)[0], updated(policy, given, plain)[0])


def test_weights_that_an_engine_does_not_hold_stop_the_update(policy, reference):
    algorithm = method("grpo")
    given = prepared(algorithm, policy, reference)
    updater = Updater(policy, torch.optim.SGD(policy.module.parameters()), Ranks(), Settings(WHOLE, 9, 1.0, 0.5))
    for sampler in (policy, reference):
        given.arrays["rollout_logprobs"] = run_pass(sampler, given, WHOLE)["logprobs"]
        before = [p.clone() for p in policy.module.parameters()]
        if sampler is policy:
            metrics = updater.update(given, algorithm, learning_rate=0.0, seed=0)
            assert metrics["rollout/logprob_gap_max"] < 1e-5
        else:
            with pytest.raises(TrainingError, match="differ from the trainer's by"):
                updater.update(given, algorithm, learning_rate=1.0, seed=0)
            assert all(torch.equal(p, b) for p, b in zip(policy.module.parameters(), before, strict=True))
