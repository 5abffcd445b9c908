"""What every row of every parts table must be, whatever it computes."""

import inspect

import pytest

from llmrl import catalog
from llmrl.algorithm import STAGES, WITHOUT_ARRAYS, Algorithm
from llmrl.batch import base_name
from llmrl.composition import build
from llmrl.options import bind
from llmrl.plan import passes, required

KINDS = [*STAGES.values(), "algorithms"]
ROWS = [(kind, name) for kind in KINDS for name in catalog.table(kind)]
OTHERS = ("algorithms", *(STAGES[stage] for stage in WITHOUT_ARRAYS))
AFTER_A_RUN = ("entropy_law",)  # reads a run's evaluations
READS_ARRAYS = [(kind, name) for kind, name in ROWS if kind not in OTHERS and name not in AFTER_A_RUN]


@pytest.mark.parametrize("kind, name", ROWS)
def test_builds_from_its_name_alone(kind, name):
    part = bind(catalog.get(kind, name), {})
    assert not inspect.isclass(part)
    if kind == "algorithms":
        algorithm = build({"name": name})
        assert isinstance(algorithm, Algorithm) and algorithm.objective
        assert required(algorithm) and [
            p.name for p in passes(algorithm, online="rollout_logprobs" in required(algorithm))
        ]


@pytest.mark.parametrize("kind, name", READS_ARRAYS)
def test_input_names_are_words_of_the_vocabulary(kind, name):
    names = catalog.inputs_of(catalog.get(kind, name))
    assert names and [base_name(n) for n in names]  # KeyError for any other


@pytest.mark.parametrize("name", catalog.table("conditions"))
def test_conditions_read_groups(name):
    assert catalog.inputs_of(catalog.get("conditions", name)) == ["groups"]


@pytest.mark.parametrize("name", catalog.table("sampling"))
def test_sampling_parts_read_rollouts(name):
    part = catalog.get("sampling", name)
    assert catalog.inputs_of(part) == ["rollouts"] and callable(part.temperatures)


@pytest.mark.parametrize("kind, name", ROWS)
def test_options_are_typed_and_the_docstring_begins_with_a_sentence(kind, name):
    part = catalog.get(kind, name)
    for option in catalog.options_of(part).values():
        assert option.annotation is not option.empty, (
            f"{option.name} has no type, so a recipe's value cannot be checked"
        )
    assert catalog.summary(kind, name)[0]
