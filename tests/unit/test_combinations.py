"""What is refused together, and what only deserves a word."""

from dataclasses import replace

import pytest

from llmrl import catalog
from llmrl.combinations import cautions, conflicts, option
from llmrl.composition import build
from llmrl.regularizers.adaptive_kl import AdaptiveKl

TIS = "importance_weights"
KL = {"name": "kl_in_reward", "kl_coef": 0.05}

REFUSED = {
    "a trust region without a measure": (
        {"name": "trpo", "regularizers": []},
        "algorithm.update: Trpo bounds what kl_old measures, and it is not there. Add kl_old",
    ),
    "a bound without its penalty": (
        {"name": "fixpo", "regularizers": ["kl_old"]},
        "algorithm.update: Fixpo bounds what FixpoPenalty measures, and it is not there. Add fixpo",
    ),
    "a gate without the prompts it opens for": (
        {"name": "ahpo", "select": ["dynamic_sampling"]},
        "algorithm.select: dynamic_sampling drops the prompts without a right answer",
    ),
    "a rule without steps and a part that waits for them": (
        {"name": "trpo", "prepare": ["m2po_mask"]},
        "algorithm.update: Trpo makes no steps of the optimizer, and m2po_mask is brought up to date by them.",
    ),
    "one memory for two": (
        {"name": "grpo", "combine": ["weighted_sum", "ppo_max_normalisation", "ppo_max_normalisation"]},
        "algorithm.combine: PpoMaxNormalisation stands there more than once",
    ),
    "a ratio and a weight": (
        {"name": "tis", "shaping": [TIS, "ratio_to_sampler"]},
        "importance_weights and ratio_to_sampler both weigh",
    ),
    "a diagnostic of what was replaced": (
        {"name": "grpo", "shaping": ["ratio_to_sampler"], "diagnostics": ["effective_sample_size"]},
        "effective_sample_size reads the trainer's log-probabilities, which ratio_to_sampler replaces",
    ),
    "replaced ahead of who reads it": (
        {"name": "grpo", "shaping": ["ratio_to_sampler", "rejection_mask"]},
        "ratio_to_sampler stands ahead of rejection_mask, which would take the engine's",
    ),
    "two weights": ({"name": "tis", "shaping": [TIS, "icepop"]}, "importance_weights and icepop both weigh"),
    "twice the same": ({"name": "grpo", "shaping": [TIS, TIS]}, "importance_weights and importance_weights both weigh"),
    **{
        f"{correction} and {name}": (
            {"name": "tis", "shaping": [correction], "objective": name},
            f"so does the objective {name},",
        )
        for correction in (TIS, "icepop")
        for name in ("alp", "dppo", "decoupled_ppo", "prime", "vespo")
    },
    "weights and an answer's ratio": (
        {"name": "gspo", "shaping": ["icepop"]},
        "icepop acts on single tokens, and gspo",
    ),
    "masked tokens and an answer's ratio": (
        {"name": "gmpo", "shaping": [{"name": "rejection_mask", "level": "token"}]},
        "rejection_mask acts on single tokens, and gmpo",
    ),
    "weights of prepare and an answer's ratio": (
        {"name": "luspo", "prepare": ["m2po_mask"]},
        "algorithm.prepare: m2po_mask acts on single tokens, and luspo",
    ),
    "weights of a selection and groups": (
        {"name": "grpo", "select": ["red_weight"], "objective": "opmd_kimi"},
        "algorithm.select: red_weight acts on single tokens, and opmd_kimi",
    ),
    "KL in reward and loss": (
        {"name": "grpo", "combine": ["weighted_sum", KL], "advantage": "gae", "regularizers": ["kl_k2"]},
        "algorithm.regularizers: kl_in_reward in combine and kl_k2 in regularizers both penalise",
    ),
    "KL twice in the loss": ({"name": "grpo", "regularizers": ["kl_k2", "kl_k3"]}, "kl_k2 in regularizers and kl_k3"),
    "KL steered and fixed": (
        {"name": "grpo", "regularizers": ["adaptive_kl", "kl_full"]},
        "AdaptiveKl in regularizers",
    ),
    "flat groups, PVPO": (
        {"name": "grpo", "select": ["dynamic_sampling"], "advantage": "pvpo"},
        "to which pvpo gives credit",
    ),
    "flat groups, sets": (
        {"name": "grpo", "select": ["dynamic_sampling"], "advantage": {"name": "polychromic"}},
        "to which polychromic gives credit",
    ),
}
ALLOWED = [
    {"name": "tis", "shaping": [TIS, "rejection_mask"]},  # a weight on what is kept
    {"name": "tis", "shaping": [TIS], "prepare": ["opsm"]},
    {"name": "gspo", "shaping": ["rejection_mask"]},  # of whole answers
    {"name": "gspo", "per_token": True, "shaping": [TIS]},
    {"name": "dppo", "shaping": ["rejection_mask"]},
    {
        "name": "grpo",
        "combine": ["weighted_sum", KL],
        "advantage": "gae",
        "regularizers": [{"name": "kl_k2", "kl_coef": 0.0}],
    },
    {"name": "grpo", "combine": ["weighted_sum", KL], "advantage": "gae", "regularizers": ["entropy"]},
    {"name": "grpo", "select": ["dynamic_sampling"]},
]


@pytest.mark.parametrize("config, told", REFUSED.values(), ids=REFUSED)
def test_what_makes_no_sense_together_is_refused(config, told):
    (problem,) = conflicts(build(config))
    assert told in problem and problem.startswith("algorithm.")
    assert problem.split(": ")[1].count(".") and problem.endswith((".", "out."))  # what, why, and the next move


@pytest.mark.parametrize("config", ALLOWED, ids=str)
def test_what_goes_together_is_not(config):
    assert conflicts(build(config)) == [] == cautions(build(config))


@pytest.mark.parametrize("name", catalog.table("algorithms"))
def test_no_method_stands_in_its_own_way(name):
    assert conflicts(build({"name": name})) == [] == cautions(build({"name": name}))


def test_several_problems_are_all_told():
    config = {"name": "gspo", "shaping": [TIS, "icepop"], "regularizers": ["kl_k2", "kl_k3"]}
    assert len(conflicts(build(config))) == 3


def test_estimators_in_the_wrong_place_get_a_word():
    in_loss = build({"name": "grpo", "regularizers": ["kl_k1"]})
    in_reward = build({"name": "grpo", "combine": ["weighted_sum", KL | {"estimator": "k3"}], "advantage": "gae"})
    assert "expected gradient is 0" in cautions(in_loss)[0] and conflicts(in_loss) == []
    assert "only k1 has" in cautions(in_reward)[0] and conflicts(in_reward) == []
    assert "the bound is kept by the estimate" in cautions(build({"name": "fixpo", "exact": False}))[0]
    silent = build({"name": "grpo", "regularizers": [{"name": "kl_k1", "kl_coef": 0.0}]})
    assert cautions(silent) == []


def test_an_option_is_found_wherever_it_is_set():
    part = build({"name": "tis", "shaping": {"high": 3.0}}).shaping[0]
    assert (option(part, "high"), option(part, "level"), option(part, "normalize")) == (3.0, "token", False)
    assert option(AdaptiveKl(target=2.0), "target") == 2.0


def test_the_tables_name_parts_that_exist():
    from llmrl import combinations as c

    known = {
        catalog.name_of(catalog.get(k, n))
        for k in ("selections", "shaping", "objectives", "regularizers", "advantages")
        for n in catalog.table(k)
    }
    held = {getattr(catalog.get("regularizers", n), "__name__", "") for n in catalog.table("regularizers")}
    assert {*c.WEIGHTING, *c.UNDIVIDED, *c.PENALTIES, *c.HEARS_FLAT_GROUPS} <= known | held


def test_other_algorithms_of_the_same_parts_are_judged_alike():
    twice = replace(build({"name": "tis"}), shaping=build({"name": "icepop"}).shaping + build({"name": "tis"}).shaping)
    assert len(conflicts(twice)) == 1
