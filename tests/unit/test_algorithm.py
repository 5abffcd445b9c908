"""Options against signatures, algorithms out of parts, and the passes that they need.

The parts here stand for real ones; only their signatures matter.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import pytest

from llmrl.algorithm import Algorithm
from llmrl.composition import build, build_stage
from llmrl.errors import RecipeError
from llmrl.options import bind, check_options
from llmrl.plan import droppable, passes, reasons, required
from llmrl.recipe import resolve


def scaled(rewards, group_ids, *, eps: float = 1e-6, mode: Literal["std", "none"] = "std"):
    return rewards


def surrogate(logprobs, old_logprobs, advantages, *, clip_low: float = 0.2, clip_high: float = 0.2):
    return logprobs


def tilt(logprobs, ref_logprobs, *, kl_coef: float = 0.1, clip_low: float = 0.0):
    return logprobs


def pairwise(chosen_seq_logprobs, rejected_ref_seq_logprobs, *, beta: float = 0.1):
    return chosen_seq_logprobs


def cost(rewards, old_logprobs, ref_logprobs, *, kl_coef: float = 0.05):
    return rewards


def needy(logprobs, *, sizes: tuple[int, int], note: str | None = None):
    return logprobs


class Memory:
    def __init__(self, *, size: int = 4, relabel: bool = True):
        self.size, self.relabel = size, relabel

    def init(self):
        return {}

    def apply(self, state, groups):
        return groups, state


def method(*, clip_high: float = 0.2, epochs: int = 1) -> Algorithm:
    return Algorithm(advantage=scaled, objective=(partial(surrogate, clip_high=clip_high),), epochs=epochs,
                     condition=Memory(size=7))  # fmt: skip


def doubled() -> Algorithm:
    return Algorithm(advantage=scaled, objective=(surrogate, tilt))


HERE = f"{__name__}:"
METHOD = {"name": f"{HERE}method"}


def keywords(part) -> dict:
    return part.keywords


def refused(config: dict) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        build(config)
    return caught.value.problems


def test_options_are_checked_against_the_signature():
    assert check_options(scaled, {"eps": 1, "mode": "none"}, "x") == []
    assert check_options(scaled, {"epz": 1, "eps": "a", "mode": "sdt"}, "x") == [
        "x.epz is not an option of scaled. Did you mean eps? Options: eps, mode.",
        "x.eps: found 'a' (a string), expected a number.",
        "x.mode: found 'sdt' (a string), expected 'std' or 'none'.",
    ]
    assert check_options(scaled, {"eps": True}, "x") == ["x.eps: found true, expected a number."]
    assert check_options(needy, {"note": "n"}, "x") == ["x.sizes is missing: needy has no default for it."]
    assert check_options(partial(needy, sizes=(1, 2)), {}, "x") == []


def test_bind_sets_options_on_functions_and_makes_objects():
    assert keywords(bind(needy, {"sizes": [1, 2]})) == {"sizes": (1, 2)}
    assert keywords(bind(partial(surrogate, clip_low=0.1), {"clip_high": 1})) == {"clip_low": 0.1, "clip_high": 1.0}
    memory = bind(Memory, {"size": 2})
    assert (memory.size, memory.relabel) == (2, True)


def test_a_method_with_its_own_options():
    made = build({**METHOD, "clip_high": 0.3, "reduce": "group_mean", "minibatches": 2})
    assert keywords(made.objective[0]) == {"clip_high": 0.3}
    assert (made.reduce, made.epochs, made.minibatches) == ("group_mean", 1, 2)


def test_stages_take_options_names_and_lists():
    made = build({**METHOD, "objective": {"clip_low": 0.1}, "advantage": {"eps": 0.5}, "condition": {"relabel": False}})
    assert keywords(made.objective[0]) == {"clip_high": 0.2, "clip_low": 0.1}
    assert keywords(made.advantage) == {"eps": 0.5}
    assert (made.condition.size, made.condition.relabel) == (7, False)
    two = [f"{HERE}surrogate", {"name": f"{HERE}pairwise", "beta": 1}]
    made = build({**METHOD, "objective": two, "condition": None})
    assert [p.func for p in made.objective] == [surrogate, pairwise] and keywords(made.objective[1]) == {"beta": 1.0}
    assert made.condition is None
    parts = build({"advantage": f"{HERE}scaled", "objective": f"{HERE}surrogate"})
    assert parts.advantage.func is scaled and [p.func for p in parts.objective] == [surrogate]


def test_every_problem_of_an_algorithm_at_once():
    both = [f"{HERE}surrogate", f"{HERE}tilt"]
    listing = (
        "Options: clip_high, epochs. "
        "Stages: sampling, combine, select, condition, advantage, shaping, prepare, objective, regularizers, perturb, "
        "update, diagnostics, reduce, minibatches, before, extra."
    )
    spoiled = {"clip_hgh": 1, "clip_low": 1, "epochs": "two", "minibatches": 0, "shaping": {"a": 1}, "lr": 4}
    assert refused({**METHOD, **spoiled, "objective": {"clip": 1}}) == [
        "algorithm.epochs: found 'two' (a string), expected a whole number.",
        f"algorithm.clip_hgh is not an option of {HERE}method. Did you mean clip_high? {listing}",
        f"algorithm.clip_low is not an option of {HERE}method. Here it is algorithm.objective.clip_low. {listing}",
        "algorithm.minibatches: found 0, expected greater than or equal to 1.",
        "algorithm.shaping.a: there is no part to set it on. Name one: {name: ..., a: ...}.",
        f"algorithm.lr is not an option of {HERE}method. Here it is training.learning_rate. {listing}",
        "algorithm.objective.clip is not an option of surrogate. Did you mean clip_low? Options: clip_low, clip_high.",
    ]
    assert "found 'sum' (a string), expected 'token_mean', 'sequence_mean'" in refused({**METHOD, "reduce": "sum"})[0]
    assert refused({}) == ["algorithm: no objective. Name a method, such as {name: grpo}, or an objective."]
    assert refused({**METHOD, "advantage": both}) == ["algorithm.advantage: found 2 parts, expected one."]
    (problem,) = refused({"objective": "clipped_surogate"})
    assert problem.startswith(
        "algorithm.objective: no objective named 'clipped_surogate'. Did you mean clipped_surrogate?"
    )


def test_an_option_that_two_parts_have_needs_a_name():
    config = {"name": f"{HERE}doubled", "objective": {"clip_low": 0.1, "clip_high": 0.1}}
    assert refused(config) == [
        "algorithm.objective.clip_low: surrogate and tilt both have it. List the parts, each with its name."
    ]


def test_algorithm_problems_of_a_recipe_say_where(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "model: {make: tiny}\ndata: {source: addition}\nalgorithm: {name: %s%s}\n"
    (tmp_path / "r.yaml").write_text(text % (METHOD["name"], ""))
    stage = resolve("r.yaml", ["algorithm.objective={x: 1}"])
    with pytest.raises(RecipeError, match=r"^override: algorithm\.objective\.x is not an option of surrogate"):
        build_stage(stage.stages[0])
    (tmp_path / "r.yaml").write_text(text % (METHOD["name"], ", clip_hgh: 1"))
    stage = resolve("r.yaml")
    with pytest.raises(RecipeError, match=r"^r\.yaml:3: algorithm\.clip_hgh is not an option"):
        build_stage(stage.stages[0])


def test_required_and_reasons_name_the_arrays_and_their_readers():
    made = Algorithm(advantage=scaled, objective=(surrogate,), regularizers=(tilt,), condition=Memory())
    assert required(made) == {"rewards", "group_ids", "logprobs", "old_logprobs", "advantages", "ref_logprobs"}
    assert reasons(made)["logprobs"] == ["surrogate", "tilt"]


def test_arrays_that_cannot_be_read_are_refused():
    def misspelt(logprob):
        return logprob

    def early(logprobs):
        return logprobs

    with pytest.raises(RecipeError) as caught:
        required(Algorithm(objective=(misspelt, surrogate), combine=(early,)))
    assert caught.value.problems == [
        "algorithm.combine: early reads 'logprobs', which exists during the update only. Did you mean old_logprobs?",
        "algorithm.objective: misspelt reads 'logprob', which is not in the vocabulary of llmrl/batch.py. "
        "Did you mean logprobs?",
        "algorithm.objective: surrogate reads 'advantages', but there is no advantage stage. "
        "Set algorithm.advantage, such as grpo.",
    ]


@pytest.mark.parametrize(
    ("made", "names"),
    [
        (Algorithm(advantage=scaled, objective=(surrogate,)), ["current"]),
        (Algorithm(advantage=scaled, objective=(surrogate,), minibatches=2), ["old", "current"]),
        (Algorithm(advantage=scaled, objective=(surrogate,), combine=(cost,)), ["old", "ref", "current"]),
        (Algorithm(advantage=scaled, objective=(surrogate,), regularizers=(tilt,)), ["ref", "current"]),
        (Algorithm(objective=(pairwise,)), ["ref", "current"]),
    ],
)
def test_only_the_passes_that_some_part_asks_for(made, names):
    assert [plan.name for plan in passes(made)] == names


def test_a_pass_says_which_arrays_it_makes_and_for_whom():
    def critic(values, old_values):
        return values

    old, current = passes(Algorithm(advantage=scaled, objective=(surrogate, critic)))
    assert old == ("old", ("old_values",), "old_values for critic")
    assert current == ("current", ("logprobs", "values"), "logprobs for surrogate; values for critic")


def test_replayed_data_has_no_sampler_log_probabilities():
    def corrected(logprobs, rollout_logprobs):
        return logprobs

    made = Algorithm(objective=(corrected,))
    assert [plan.name for plan in passes(made, online=True)] == ["current"]
    with pytest.raises(RecipeError, match="corrected reads rollout_logprobs"):
        passes(made, online=False)


def test_rows_without_credit_may_go_only_where_every_part_multiplies_by_it():
    def kimi(logprobs, advantages):
        return logprobs

    kimi.needs_zero_advantage_rows = True
    assert droppable(Algorithm(advantage=scaled, objective=(surrogate,)))
    assert not droppable(Algorithm(advantage=scaled, objective=(surrogate,), regularizers=(tilt,)))
    assert not droppable(Algorithm(advantage=scaled, objective=(partial(kimi),)))


def test_a_soft_baseline_takes_the_place_of_a_critic():
    algorithm = build({"name": "apa", "soft_baseline": True, "temperature": 0.5})
    assert not {"values", "old_values", "returns", "token_rewards"} & required(algorithm)
    assert algorithm.advantage.keywords == {"baseline": "log_mean_exp", "tau": 0.5}
    assert "values" in required(build({"name": "apa"}))


def test_rewards_of_a_second_batch_are_made_like_those_of_the_rollouts_or_refused():
    with pytest.raises(
        RecipeError, match="kl_in_reward in algorithm.combine reads (old|ref)_logprobs, which a second batch"
    ):
        required(build({"name": "hnpg", "combine": ["weighted_sum", "kl_in_reward"]}))


def test_under_noise_the_old_policy_is_not_the_one_that_the_loss_sees():
    assert [p.name for p in passes(build({"name": "grpo"}))] == ["current"]
    assert [p.name for p in passes(build({"name": "grpo", "perturb": "layer_noise"}))] == ["old", "current"]
