"""What cannot be sampled ahead of training, said before anything loads."""

from __future__ import annotations

import pytest

from llmrl import catalog
from llmrl.composition import build_stage
from llmrl.errors import RecipeError
from llmrl.recipe import StageConfig

GOOD = {
    "name": "rl",
    "data": {"source": "addition"},
    "algorithm": {"name": "tis"},
    "rollout": {"engine": "vllm_server", "staleness": 1},
}
OLD = (
    "no part of the algorithm reads rollout_logprobs, so that answers of older weights would count as the policy's own"
)
REFUSED = {
    "the policy's own module": ({"engine": "transformers"}, {}, "the engine transformers has no weights of its own"),
    "stored answers": ({"engine": "replay"}, {}, "the engine replay has no weights of its own"),
    "no sync": ({"sync": "never"}, {}, "rollout.sync: never, under which no answer is of the weights in training"),
    "ranks in step": (
        {"engine": {"name": "vllm", "tensor_parallel": 2}},
        {},
        "vllm with tensor_parallel: 2, whose processes have to sample in step",
    ),
    "feedback in prompts": (
        {},
        {"name": "fcp"},
        "and algorithm.condition (Feedback), which writes into the next prompts",
    ),
    "prompts chosen anew": (
        {},
        {"name": "pvpo", "before": {"refresh_every": 5}, "shaping": ["importance_weights"]},
        "algorithm.before.refresh_every, which chooses anew between steps",
    ),
    "a ratio to the trainer alone": ({}, {"name": "grpo"}, OLD),
    "a mask of the worst alone": ({}, {"name": "grpo", "prepare": ["opsm"]}, OLD),
    "a selection by age": ({}, {"name": "grpo", "select": ["drop_stale"]}, OLD),
    "a number that is only logged": ({}, {"name": "grpo", "diagnostics": ["effective_sample_size"]}, OLD),
}
TAKEN = [
    {"name": "decoupled_ppo"},
    {"name": "grpo", "shaping": ["importance_weights"]},
    {"name": "gspo", "shaping": ["rejection_mask"]},
    {"name": "dapo", "shaping": ["icepop"]},
    {"name": "m2po", "shaping": ["ratio_to_sampler"]},
    {"name": "opmd", "objective": "opmd_simple"},
    {"name": "scalerl"},
    {"name": "asymre"},
]


def problems_of(rollout, algorithm) -> list[str]:
    stage = GOOD | {"rollout": GOOD["rollout"] | rollout, "algorithm": algorithm or GOOD["algorithm"]}
    try:
        build_stage(StageConfig.model_validate(stage))
    except RecipeError as error:
        return error.problems
    return []


@pytest.mark.parametrize(("rollout", "algorithm", "said"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_meaning_ahead_of_training_is_refused(rollout, algorithm, said):
    found = problems_of(rollout, algorithm)
    assert any("rollout.staleness: found 1, " in line and said in line for line in found), found
    assert problems_of(rollout | {"staleness": 0}, algorithm) == []


@pytest.mark.parametrize("algorithm", TAKEN, ids=str)
def test_methods_that_account_for_who_wrote_the_answers_are_taken(algorithm):
    assert problems_of({}, algorithm) == []
    assert problems_of({"engine": "vllm"}, algorithm) == problems_of({"engine": "scripted"}, algorithm) == []


def test_every_engine_says_whose_weights_it_samples_by():
    own = {name for name in catalog.table("engines") if getattr(catalog.get("engines", name), "own_weights", False)}
    assert own == {"vllm", "vllm_server", "scripted"}
