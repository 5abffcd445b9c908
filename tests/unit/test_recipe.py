"""Recipes: what is read, how files, stages and overrides lie over one another, and what a spoiled one is told."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
import yaml

from llmrl import algorithm as algorithms
from llmrl.algorithm import Algorithm, build, build_stage, droppable, passes, reasons, required
from llmrl.config import Run
from llmrl.errors import RecipeError
from llmrl.foreign import FOREIGN
from llmrl.options import bind, check_options
from llmrl.problems import leaves
from llmrl.recipe import resolve
from llmrl.recipe_file import parse

SPOILED = yaml.safe_load((Path(__file__).parents[1] / "recipes" / "spoiled.yaml").read_text())
GOOD = "model: {make: tiny}\ndata: {source: addition}\nalgorithm: {name: grpo}\n"
STAGED = GOOD + """training: {steps: 9}
stages:
  - {name: warm, algorithm: {name: sft}, training: {learning_rate: 1e-3}}
  - {name: rl, algorithm: {kl_coef: 0.1}, data: {limit: 5}}
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def file(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return name

    return file


def problems_of(path: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        resolve(path, overrides)
    return caught.value.problems


@pytest.mark.parametrize("case", SPOILED, ids=lambda case: case["title"])
def test_a_spoiled_recipe_gets_exactly_these_problems(write, case):
    recipes = Path(algorithms.__file__).parents[1] / "recipes"
    expected = [p.replace("{recipes}", str(recipes)) for p in case["problems"]]
    found = problems_of(write("spoiled.yaml", case["recipe"]))
    assert [p.removeprefix("spoiled.yaml:").lstrip() for p in found] == expected


def test_all_problems_of_a_file_come_at_once(write):
    path = write("r.yaml", "model: {make: tine}\ndata: {sorce: x}\nlr: 1\ntraining: {steps: a}\nseed: 1\nseed: 2\n")
    text = "\n".join(problems_of(path))
    for part in ("tine", "data.sorce", "lr is not a key", "training.steps", "seed is set twice", "algorithm is missing"):
        assert part in text
    assert text.count("training.steps") == 1 + "Here it is training.learning_rate".count("training.steps")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5), ("1E5", 1e5), ("1.5e3", 1500.0), ("-2e-4", -2e-4), ("+.5", 0.5), ("012", 12), ("-3", -3),
        ("off", "off"), ("no", "no"), ("Yes", "Yes"), ("true", True), ("FALSE", False), ("~", None), ("", None),
        ("1:30", "1:30"), ("2024-01-01", "2024-01-01"), ("1_000", "1_000"), ("'1e-5'", "1e-5"), ("v1.0", "v1.0"),
    ],
)  # fmt: skip
def test_plain_words(text, value):
    read = parse(f"key: {text}", "f", [])[0]["key"]
    assert read == value and type(read) is type(value)


def test_aliases_and_merge_keys(write):
    text = "model: {make: tiny}\ndata: &d {source: addition, limit: 3}\nalgorithm: {name: grpo}\nevaluation:\n" \
           "  a: {data: {<<: *d, limit: 4}}\n"  # fmt: skip
    recipe = resolve(write("r.yaml", text))
    assert recipe.run.evaluation["a"].data.source == "addition" and recipe.run.evaluation["a"].data.limit == 4
    assert recipe.origins["evaluation.a.data.source"] == "r.yaml:2"
    assert recipe.origins["evaluation.a.data.limit"] == "r.yaml:5"


def test_aliases_that_explode_or_hold_themselves_are_refused(write):
    laughs = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 30))
    assert "expands to more than 10000 values" in problems_of(write("laughs.yaml", laughs))[0]
    assert "an alias of itself" in problems_of(write("self.yaml", "a: &a {b: *a}\n"))[0]
    assert "an alias of itself" in problems_of(write("merge.yaml", "a: &a {<<: *a}\n"))[0]


def test_bases_are_laid_in_order_under_the_file(write):
    write("one.yaml", GOOD + "training: {steps: 1, warmup_steps: 1, betas: [0.5, 0.5]}\n")
    write("two.yaml", "training: {steps: 2, save_every: 2}\nscorers: [a:b]\n")
    recipe = resolve(write("r.yaml", "base: [one.yaml, two.yaml]\ntraining: {betas: [0.1, 0.2]}\n"))
    training = recipe.run.training
    assert (training.steps, training.warmup_steps, training.save_every, training.betas) == (2, 1, 2, [0.1, 0.2])
    assert recipe.run.name == "r" and recipe.run.scorers == ["a:b"]
    origins = [recipe.origins[f"training.{key}"] for key in ("steps", "warmup_steps", "betas", "schedule")]
    assert origins == ["two.yaml:1", "one.yaml:4", "r.yaml:2", "default"]


def test_bases_in_a_circle_are_refused(write):
    write("a.yaml", "base: b.yaml\n")
    write("b.yaml", "base: a.yaml\n")
    assert problems_of("a.yaml") == ["a.yaml: base goes in a circle: a.yaml → b.yaml → a.yaml."]


def test_another_name_replaces_the_options_that_went_with_the_old_one(write):
    write("one.yaml", "model: {make: tiny}\ndata: {source: addition}\nalgorithm: {name: grpo, kl_coef: 0.1}\n")
    same = resolve(write("same.yaml", "base: one.yaml\nalgorithm: {name: grpo, epochs: 2}\n"))
    other = resolve(write("other.yaml", "base: one.yaml\nalgorithm: {name: dpo, beta: 0.2}\n"))
    assert same.run.algorithm == {"name": "grpo", "kl_coef": 0.1, "epochs": 2}
    assert other.run.algorithm == {"name": "dpo", "beta": 0.2} and "algorithm.kl_coef" not in other.origins


def test_overrides_in_every_form(write):
    path = write("r.yaml", GOOD)
    words = ["training.steps=3", "--training.learning_rate=2e-4", "--training.weight_decay", "-0.5", "data.system="]
    recipe = resolve(path, [*words, "rollout.engine={name: replay}", "training.betas=[0.5, 0.9]"])
    training = recipe.run.training
    assert (training.steps, training.learning_rate, training.weight_decay) == (3, 2e-4, -0.5)
    assert recipe.run.data.system is None and recipe.run.rollout.engine == {"name": "replay"}
    assert training.betas == [0.5, 0.9] and recipe.origins["training.betas"] == "override"
    assert recipe.origins["data.source"] == "r.yaml:2" and recipe.origins["seed"] == "default"


def test_spoiled_overrides(write):
    path = write("r.yaml", GOOD)
    assert problems_of(path, "+seed=1", "seed", "--out", "a..b=1", "name=[") == [
        "override '+seed=1': + is not needed here; write seed=1.",
        "override 'seed': expected key.sub=value, such as training.steps=100.",
        "override '--out': expected key.sub=value, such as training.steps=100.",
        "override 'a..b=1': expected key.sub=value, such as training.steps=100.",
        "override name=[:1:2: not YAML: while parsing a flow node: expected the node content, but found '<stream end>'.",
    ]
    assert problems_of(path, "seed=1.5") == ["override: seed: found 1.5, expected a whole number."]


def test_one_stage_where_none_is_named(write):
    (stage,) = resolve(write("r.yaml", GOOD)).stages
    assert stage.name == "grpo" and stage.data.source == "addition" and stage.algorithm == {"name": "grpo"}


def test_stages_are_laid_over_the_recipe(write):
    recipe = resolve(write("r.yaml", STAGED))
    warm, rl = recipe.stages
    assert warm.algorithm == {"name": "sft"} and rl.algorithm == {"name": "grpo", "kl_coef": 0.1}
    assert (warm.training.steps, warm.training.learning_rate) == (9, 1e-3) and rl.training.learning_rate == 1e-6
    assert (warm.data.limit, rl.data.limit, rl.data.source) == (None, 5, "addition")
    assert rl.origins["data.limit"] == "r.yaml:7" and rl.origins["training.steps"] == "r.yaml:4"
    assert recipe.origins["stages.rl.data.limit"] == "r.yaml:7" and warm.origins["rollout.top_p"] == "default"


def test_overrides_reach_stages_by_name_and_never_vanish(write):
    path = write("r.yaml", STAGED)
    warm, rl = resolve(path, ["stages.warm.training.steps=2", "training.steps=4"]).stages
    assert (warm.training.steps, rl.training.steps) == (2, 4)
    assert problems_of(path, "stages.warn.training.steps=2") == [
        "override: stages has no item named 'warn'. Did you mean warm? Items: warm, rl."
    ]
    both = [f"stages.{name}.training.steps=1" for name in ("warm", "rl")]
    assert resolve(path, [*both]).stages[1].training.steps == 1
    again = write("again.yaml", STAGED.replace("data: {limit: 5}", "training: {learning_rate: 1e-4}"))
    assert problems_of(again, "training.learning_rate=1e-2") == [
        "override training.learning_rate: every stage sets it again, so it would change nothing. Write "
        "stages.warm.training.learning_rate or stages.rl.training.learning_rate."
    ]


def test_the_text_reads_back_to_the_same_run(write):
    path = write("r.yaml", STAGED + 'name: "off"\ndata: {source: addition, system: "a: #1\\n\'2e3\'", user: "1e-5"}\n')
    path = write("r.yaml", Path(path).read_text().replace("data: {source: addition}\n", "", 1))
    recipe = resolve(path)
    for text in (recipe.text, recipe.annotated):
        again = resolve(write("again.yaml", text))
        assert again.run == recipe.run and again.run.data.user == "1e-5" and again.run.name == "off"
        assert [s.model_dump(exclude={"origins"}) for s in again.stages] == [
            s.model_dump(exclude={"origins"}) for s in recipe.stages
        ]


def test_own_problems_are_told_within_a_second_and_without_torch(write):
    path = write("r.yaml", GOOD + "trainning: {}\n")
    code = f"""
import sys, time
from llmrl.recipe import resolve
from llmrl.errors import RecipeError
try: resolve({path!r}); raise SystemExit("no problem found")
except RecipeError: pass
assert time.process_time() < 1, time.process_time()
assert not {{"torch", "transformers", "datasets", "vllm"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_foreign_name_points_at_a_key_that_exists():
    known = {dotted for dotted, _ in leaves(Run)} | {dotted.split(".")[0] for dotted, _ in leaves(Run)} | {"model.lora"}
    for theirs, our in FOREIGN.items():
        key = our.split(" ")[0].rstrip(":")
        assert key in known or key.startswith("algorithm."), f"{theirs} → {key}"


# Options, and algorithms made of parts. The parts here stand for real ones; only their signatures matter.


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


HERE = f"{__name__}:"
METHOD = {"name": f"{HERE}method"}


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])


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
    assert keywords(made.objective[0]) == {"clip_high": 0.2, "clip_low": 0.1} and keywords(made.advantage) == {"eps": 0.5}
    assert (made.condition.size, made.condition.relabel) == (7, False)
    made = build({**METHOD, "objective": [f"{HERE}surrogate", {"name": f"{HERE}pairwise", "beta": 1}], "condition": None})
    assert [p.func for p in made.objective] == [surrogate, pairwise] and keywords(made.objective[1]) == {"beta": 1.0}
    assert made.condition is None
    parts = build({"advantage": f"{HERE}scaled", "objective": f"{HERE}surrogate"})
    assert parts.advantage.func is scaled and [p.func for p in parts.objective] == [surrogate]


def test_every_problem_of_an_algorithm_at_once():
    both = [f"{HERE}surrogate", f"{HERE}tilt"]
    assert refused({**METHOD, "clip_hgh": 1, "clip_low": 1, "epochs": "two", "reduce": "sum", "shaping": {"a": 1},
                    "objective": {"clip": 1}, "num_generations": 4}) == [  # fmt: skip
        f"algorithm.clip_hgh is not an option of {HERE}method. Did you mean clip_high? Options: clip_high, epochs. "
        "Stages: combine, select, condition, advantage, shaping, objective, regularizers, reduce, minibatches.",
        f"algorithm.clip_low is not an option of {HERE}method. Here it is algorithm.objective.clip_low. Options: clip_high, "
        "epochs. Stages: combine, select, condition, advantage, shaping, objective, regularizers, reduce, minibatches.",
        "algorithm.reduce: found 'sum' (a string), expected 'token_mean', 'sequence_mean', 'sequence_sum', 'fixed_length' "
        "or 'group_mean'.",
        "algorithm.shaping.a is not an option of no part. It takes no options; name a part first.",
        "algorithm.objective.clip is not an option of surrogate. Did you mean clip_low? Options: clip_low, clip_high.",
        f"algorithm.num_generations is not an option of {HERE}method. Here it is rollout.group_size. Options: clip_high, "
        "epochs. Stages: combine, select, condition, advantage, shaping, objective, regularizers, reduce, minibatches.",
        "algorithm.epochs: found 'two' (a string), expected a whole number.",
    ]
    assert refused({}) == ["algorithm: no objective. Name a method, such as {name: grpo}, or an objective."]
    assert refused({**METHOD, "advantage": both}) == ["algorithm.advantage: found 2 parts, expected one."]
    assert "no objective named 'clipped_surogate'. Did you mean clipped_surrogate?" in refused(
        {"objective": "clipped_surogate"})[0]  # fmt: skip


def test_an_option_that_two_parts_have_needs_a_name(monkeypatch):
    two = partial(Algorithm, objective=(surrogate, tilt))
    with pytest.raises(RecipeError, match="surrogate and tilt both have it"):
        algorithms._with_options(two().objective, {"clip_low": 0.1}, "algorithm.objective")


def test_algorithm_problems_of_a_recipe_say_where(write):
    stage = resolve(write("r.yaml", GOOD.replace("grpo", METHOD["name"]) + "seed: 1\n"), ["algorithm.objective={x: 1}"])
    with pytest.raises(RecipeError, match=r"^override: algorithm\.objective\.x is not an option of surrogate"):
        build_stage(stage.stages[0])
    stage = resolve(write("r.yaml", GOOD.replace("name: grpo", f"name: {METHOD['name']}, clip_hgh: 1")))
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
