"""An algorithm told in a recipe's words is that algorithm; what a recipe gets wrong is told before anything loads."""

import pytest
import torch
import yaml

from llmrl import api, catalog
from llmrl.algorithm import STAGES, Before
from llmrl.composition import build, build_stage, described
from llmrl.errors import RecipeError, TrainingError
from llmrl.plan import required
from llmrl.recipe import resolve
from llmrl.training.credit import laid_out


def problem(config: dict) -> str:
    with pytest.raises(RecipeError) as error:
        required(build({"advantage": "pvpo", "objective": "reinforce"} | config))
    return str(error.value)


@pytest.mark.parametrize("name", catalog.table("algorithms"))
def test_what_is_told_of_a_method_builds_it_again(name):
    told = described(build({"name": name}))
    kept = {field: text for field, text in told.items() if not field.startswith("extra")}
    again = described(build({field: yaml.safe_load(text) for field, text in kept.items()}))
    assert again == kept
    assert all(":" not in word for field in STAGES for word in told.get(field, "").split() if "llmrl" in word)


def test_only_what_differs_from_the_defaults_is_told():
    told = described(build({"name": "dapo", "objective": {"clip_high": 0.3}, "before": {"num_samples": 2}}))
    assert told["objective"] == "[{name: clipped_surrogate, clip_high: 0.3}]"
    assert told["select"] == "[dynamic_sampling]" and told["advantage"] == "grpo"
    assert told["before"] == "{num_samples: 2, refresh_every: 0}"


def test_a_second_batch_is_told_with_its_source_and_gate():
    told = described(build({"name": "ahpo", "min_right": 2}))["extra[0]"]
    assert told == "ahpo on stored, coefficient 1, sequence_mean, under the gate {name: ahpo_gate, min_right: 2}"


def test_a_misspelt_key_of_before_is_refused():
    assert "algorithm.before.num_sample: this key is not known. Did you mean num_samples?" in problem(
        {"before": {"num_sample": 2}}
    )
    assert problem({"before": True}) == "algorithm.before: found true, expected a mapping."
    assert build({"name": "pvpo", "before": {"num_samples": 3}}).before == Before(num_samples=3)


def test_a_second_batch_may_have_a_regularizer_as_its_loss():
    algorithm = build({"name": "grpo", "extra": {"objective": {"name": "ptx", "ptx_coef": 0.5}, "coefficient": 2.0}})
    assert described(algorithm)["extra[0]"] == "{name: ptx, ptx_coef: 0.5} on extra_data, coefficient 2, token_mean"


@pytest.mark.parametrize("given, said", [([1.0, 2.0], "gave list"), (torch.ones(1), r"gave \[1\]")])
def test_credit_of_another_shape_is_refused_and_not_spread(given, said):
    with pytest.raises(TrainingError, match=rf"mine {said}; expected .* \[2\], or .* \[2, 3\]"):
        laid_out(given, torch.ones(2, 3, dtype=torch.bool), "mine")


def test_check_refuses_what_training_would_and_says_what_is_read_by_nobody(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = {"model": {"make": "tiny"}, "data": {"source": {"name": "addition", "size": 20}}, "scorers": ["math_answer"]}
    spare = {"extra_data": {"source": {"name": "addition_demonstrations", "size": 20}}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(base | spare | {"algorithm": {"name": "grpo"}}))
    assert "careful: extra_data is set, and no stage trains on it." in api.check("r.yaml")
    assert "extra_data: 20 rows" in api.check("r.yaml", ["algorithm.extra=[{objective: ptx}]"])
    with pytest.raises(RecipeError, match="there is no extra_data"):
        api.check("r.yaml", ["extra_data=null", "algorithm.extra=[{objective: ptx}]"])
    with pytest.raises(RecipeError, match="trains on stored answers to its prompts, and none of them has one"):
        api.check("r.yaml", ["algorithm.name=ahpo"])


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"name": "ppo", "gae_lambda": 1.5}, "gae_lambda: found 1.5, expected less than or equal to 1."),
        ({"name": "ppo", "gamma": -0.1}, "gamma: found -0.1, expected greater than or equal to 0."),
        ({"name": "ppo", "value_clip": -0.2}, "value_clip: found -0.2, expected greater than or equal to 0."),
        ({"name": "ppo", "epochs": 0}, "epochs: found 0, expected greater than or equal to 1."),
        ({"name": "grpo", "kl_coef": -1}, "kl_coef: found -1, expected greater than or equal to 0."),
        ({"name": "dapo", "objective": {"clip_low": -0.2}}, "objective.clip_low: found -0.2, expected greater than"),
        ({"name": "awr", "temperature": 0}, "temperature: found 0, expected greater than 0."),
        ({"name": "dpo", "beta": float("nan")}, "beta: found nan, expected"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(config, said):
    assert f"algorithm.{said}" in problem(config)


def stage_of(tmp_path, algorithm: str, engine: str = "transformers"):
    """The only stage of a recipe with one rollout a prompt."""
    path = tmp_path / "one.yaml"
    path.write_text(
        f"model: {{make: tiny}}\ndata: {{source: addition}}\nalgorithm: {algorithm}\nscorers: [math_answer]\n"
        f"rollout: {{engine: {engine}, group_size: 1}}\n"
    )
    return resolve(path).stages[0]


@pytest.mark.parametrize("algorithm", ["{name: grpo}", "{name: ppo, advantage: rloo}", "{name: p3o}"])
def test_one_rollout_a_prompt_is_refused_where_it_would_learn_nothing(tmp_path, algorithm):
    with pytest.raises(RecipeError, match=r"one.yaml:5: rollout.group_size: found 1, expected 2 at least: .*Raise it"):
        build_stage(stage_of(tmp_path, algorithm))


@pytest.mark.parametrize(
    ("algorithm", "engine"),
    [
        ("{name: reinforce}", "transformers"),
        ("{name: ppo}", "transformers"),
        ("{name: dpo}", "replay"),
        ("{name: grpo}", "replay"),
    ],
)
def test_one_rollout_a_prompt_does_where_nothing_is_compared_or_it_is_stored(tmp_path, algorithm, engine):
    build_stage(stage_of(tmp_path, algorithm, engine))
