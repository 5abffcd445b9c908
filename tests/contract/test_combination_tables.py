"""The tables of names that refusals of combinations go by say what the parts really do."""

import pytest
from inputs import batch

from llmrl import catalog
from llmrl.batch import call
from llmrl.combinations import UNDIVIDED, WEIGHTING
from llmrl.options import bind


@pytest.mark.parametrize("name", catalog.table("objectives"))
def test_objectives_with_one_loss_for_many_tokens(name):
    part = bind(catalog.get("objectives", name), {})
    loss = call(part, batch(), part.init() if hasattr(part, "init") else None)
    assert (loss.unit != "token") == (catalog.name_of(part) in UNDIVIDED)


@pytest.mark.parametrize("kind, name", [(k, n) for k in ("selections", "shaping") for n in catalog.table(k)])
def test_parts_that_weigh_tokens(kind, name):
    part = bind(catalog.get(kind, name), {})
    out = call(part, batch(), part.init() if hasattr(part, "init") else None)
    if kind == "selections":
        weighs = out.weights is not None
    else:
        weighs = isinstance(out, dict) and "weights" in out
    assert weighs == (catalog.name_of(part) in WEIGHTING)
