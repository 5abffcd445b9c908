"""Parts with memory: killed and resumed from what a checkpoint holds, they go on with the same numbers."""

import json

import pytest
import torch
from inputs import batch

from llmrl import catalog
from llmrl.algorithm import STAGES
from llmrl.batch import call
from llmrl.options import bind
from llmrl.types import Group, Prompt, Rollout, Score

WITH_MEMORY = {
    (kind, name) for kind in STAGES.values() for name in catalog.table(kind) if hasattr(catalog.get(kind, name), "init")
}
ELSEWHERE = {"sampling": "test_sampling", "updates": "test_updates"}  # kinds that are fed in tests of their own
FED = sorted((kind, name) for kind, name in WITH_MEMORY if kind not in ELSEWHERE)
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


def lived(kind: str, part, state, step: int):
    """(what the part gives in a step, the state after it)."""
    if kind == "conditions":
        given, after = part.apply(state, groups(step))
        return [part.refine(state, PROMPTS, seed=step), given], after
    if kind in ("objectives", "regularizers"):
        loss = call(part, batch(step), state)
        means = {name: float(x.mean()) for name, x in loss.stats.items()} | {"rows": 8.0, "policy/entropy_exact": 0.1}
        means |= {"entropy/mean": 0.1} if "entropy/mean" in means else {}  # below any target
        means |= {f"{name}/max": float(x.max()) for name, x in loss.stats.items()}
        return [loss.values], part.observe(state, means)
    out, after = call(part, batch(step), state)
    return [out], after


def same(one, other) -> bool:
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("kind, name", FED)
def test_memory_resumes_from_its_json(kind, name):
    part = bind(catalog.get(kind, name), {})
    straight = resumed = part.init()
    for step in range(3):
        (given, straight), (again, resumed) = lived(kind, part, straight, step), lived(kind, part, resumed, step)
        assert same(given, again)
        part, resumed = bind(catalog.get(kind, name), {}), json.loads(json.dumps(resumed))
    assert straight == resumed and straight != part.init()


@pytest.mark.parametrize("kind, name", FED)
def test_a_state_is_never_changed_in_place(kind, name):
    part = bind(catalog.get(kind, name), {})
    state = part.init()
    before = json.dumps(state)
    lived(kind, part, state, 0)
    assert json.dumps(state) == before
