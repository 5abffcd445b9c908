"""Parts with memory: killed and resumed from what a checkpoint holds, they go on with the same numbers."""

import inspect
import json

import pytest

from llmrl import catalog
from llmrl.algorithm import STAGES
from llmrl.options import bind
from llmrl.types import Group, Prompt, Rollout, Score

WITH_MEMORY = [
    (kind, name) for kind in STAGES.values() for name in catalog.table(kind) if inspect.isclass(catalog.get(kind, name))
]
PROMPTS = [Prompt(id=str(i), text=f"question {i}", ids=(1, 2)) for i in range(6)]


def groups(step: int) -> list[Group]:
    """Two prompts with two scored rollouts each; what is said of them differs from step to step."""
    return [
        Group(
            prompt,
            (Rollout((5, 2), "five"), Rollout((6, 2), "six")),
            ({"judge": Score(1.0, f"well argued, {step}, {prompt.id}")}, {"judge": Score(0.0, f"wrong, {step}")}),
        )
        for prompt in PROMPTS[2 * step : 2 * step + 2]
    ]


@pytest.mark.parametrize("kind, name", WITH_MEMORY)
def test_memory_resumes_from_its_json(kind, name):
    part = bind(catalog.get(kind, name), {})
    assert kind == "conditions", "feed this kind of part below too"
    straight = resumed = part.init()
    for step in range(3):
        sampled = [part.refine(state, PROMPTS, seed=step) for state in (straight, resumed)]
        assert sampled[0] == sampled[1]
        (given, straight), (again, resumed) = part.apply(straight, groups(step)), part.apply(resumed, groups(step))
        assert given == again
        part, resumed = bind(catalog.get(kind, name), {}), json.loads(json.dumps(resumed))
    assert straight == resumed and straight != part.init()


@pytest.mark.parametrize("kind, name", WITH_MEMORY)
def test_a_state_is_never_changed_in_place(kind, name):
    part = bind(catalog.get(kind, name), {})
    state = part.init()
    before = json.dumps(state)
    part.refine(state, PROMPTS, seed=0)
    part.apply(state, groups(0))
    assert json.dumps(state) == before
