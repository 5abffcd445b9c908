"""What every objective and every regularizer must be, through the reduction that the trainer uses."""

from dataclasses import replace

import pytest
import torch
from inputs import assert_same, batch, differentiate, emptied, spoiled, widened

from llmrl import catalog
from llmrl.algorithm import REDUCTIONS
from llmrl.batch import Batch, base_name, call
from llmrl.ops.reduce import reduce_tokens, reduce_units
from llmrl.options import bind

KEEPS_GRADIENT_AT_ZERO_ADVANTAGE: dict[str, str] = {  # name -> why
    "kl_cov": "the penalty on the tokens of highest covariance holds whatever their credit",
    "prime": "the penalty on the distance to the sampler holds on all tokens",
    "opmd_kimi": "the square of the drift holds whatever the credit",
    "apa": "without credit the target is the reference itself",
    "awr": "everything sampled is imitated, the weight of zero credit is 1",
}
SILENT_AT_FIRST = {"adaptive_entropy": "comes on after an optimizer step with too little entropy"}
CREDITS_OTHERWISE: dict[str, str] = {  # objective -> why no test of direction below fits it
    "opmd_pairwise": "credits by rewards within the group",
    "apa": "moves towards a target that has the reference in it",
    "awr": "imitates also what has negative credit, only less",
    "p3o": "the rewards say which side is better, not its place in the pair",
    "rebel": "the rewards say which side is better, not its place in the pair",
    "hnpg": "fits a critic of tokens, which the table has not",
    "hnpg_online": "fits a critic of tokens, which the table has not",
}
SPLITS = {"1 x 8": [range(8)], "2 x 4": [[0, 1, 6, 7], [3, 2, 4, 5]], "4 x 2": [[6, 7], [0, 1], [3, 2], [4, 5]]}
HALF = torch.bfloat16

ROWS = [(kind, name) for kind in ("objectives", "regularizers") for name in catalog.table(kind)]
CREDITED = [
    (kind, name)
    for kind, name in ROWS
    if "advantages" in catalog.inputs_of(catalog.get(kind, name)) and name not in KEEPS_GRADIENT_AT_ZERO_ADVANTAGE
]

losses = pytest.mark.parametrize("kind, name", ROWS)
modes = pytest.mark.parametrize("mode", REDUCTIONS)


@pytest.fixture
def part(kind, name):
    return bind(catalog.get(kind, name), {})


@losses
def test_shapes_of_the_loss_and_of_its_statistics(part):
    given = batch()
    loss = call(part, given, part.init() if hasattr(part, "init") else None)
    mask = given.arrays["loss_mask"]
    rows = mask.shape[:1]
    shape = {"token": mask.shape, "sequence": rows, "group": rows, "pair": given.pairs.shape[:1]}[loss.unit]
    assert loss.values.shape == shape
    for name, values in loss.stats.items():
        assert values.shape in (shape, mask.shape, rows), name


@losses
@modes
def test_loss_and_gradient_are_finite_and_there(part, name, mode):
    for seed in range(3):
        total, gradients = differentiate(part, batch(seed), mode)
        assert total.isfinite() and all(g.isfinite().all() for g in gradients.values())
        assert any((g != 0).any() for g in gradients.values()) or name in SILENT_AT_FIRST


@losses
@modes
def test_what_stands_under_the_mask_does_not_matter(part, mode):
    assert_same(differentiate(part, spoiled(batch()), mode), differentiate(part, batch(), mode), rtol=0, atol=0)


@losses
@modes
def test_padding_does_not_matter(part, mode):
    total, gradients = differentiate(part, widened(batch()), mode)
    assert all((g[:, 6:] == 0).all() for g in gradients.values())
    assert_same((total, {n: g[:, :6] for n, g in gradients.items()}), differentiate(part, batch(), mode))


@losses
@modes
def test_order_of_sequences_does_not_matter(part, mode):
    order = [5, 2, 7, 0, 4, 1, 6, 3]
    total, gradients = differentiate(part, batch().take(order), mode)
    back = torch.tensor(order).argsort()
    assert_same((total, {n: g[back] for n, g in gradients.items()}), differentiate(part, batch(), mode))


@losses
@modes
@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_micro_batches_do_not_matter(part, mode, split):
    assert_same(differentiate(part, batch(), mode, split), differentiate(part, batch(), mode), rtol=1e-5, atol=1e-7)


@losses
def test_half_precision_in_single_precision_out(part):
    given = batch()
    halved = replace(given, arrays={k: v.to(HALF) if v.is_floating_point() else v for k, v in given.arrays.items()})
    rounded = replace(given, arrays={k: v.float() if v.dtype == HALF else v for k, v in halved.arrays.items()})
    total, gradients = differentiate(part, halved)
    expected, _ = differentiate(part, rounded)
    assert total.dtype == torch.float32 and all(g.isfinite().all() for g in gradients.values())
    torch.testing.assert_close(total, expected, rtol=0.03, atol=0.01)


@pytest.mark.parametrize("kind, name", CREDITED)
def test_zero_advantage_means_zero_gradient(part):
    given = batch()
    still = replace(given, arrays=given.arrays | {"advantages": torch.zeros_like(given.arrays["advantages"])})
    _, gradients = differentiate(part, still)
    assert all((g == 0).all() for g in gradients.values())


@pytest.mark.parametrize("name", KEEPS_GRADIENT_AT_ZERO_ADVANTAGE)
def test_rows_without_credit_are_forwarded_where_they_count(name):
    assert catalog.get("objectives", name).needs_zero_advantage_rows


@losses
@modes
def test_an_empty_mask_gives_zero(part, mode):
    total, gradients = differentiate(part, emptied(batch()), mode)
    assert total == 0 and all((g == 0).all() for g in gradients.values())


@pytest.mark.parametrize("name", [n for n in catalog.table("objectives") if n not in CREDITS_OTHERWISE])
def test_one_step_moves_towards_what_is_credited(name):
    """Gradient descent on a table with one softmax a position; it moves each position by its own credit alone."""
    part = bind(catalog.get("objectives", name), {})
    given = batch()
    if call(part, given, part.init() if hasattr(part, "init") else None).unit == "sequence":  # one credit an answer
        given.arrays["advantages"] = given.arrays["advantages"][:, :1].expand(given.arrays["loss_mask"].shape)
    mask, advantages = given.arrays["loss_mask"], given.arrays["advantages"]
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(5, mask.shape, generator=generator)
    table = {"logits": torch.randn(*mask.shape, 5, generator=generator)}
    table |= {n: given.arrays[n].clone() for n in ("values", "scores")}

    def read(leaves: dict) -> Batch:
        spread = leaves["logits"].log_softmax(-1)
        here = {
            "logprobs": spread.gather(-1, tokens[..., None]).squeeze(-1),
            "values": leaves["values"],
            "entropy": -(spread.exp() * spread).sum(-1),
        }
        old = {f"old_{n}": a.detach() for n, a in here.items()}
        old["rollout_logprobs"] = here["logprobs"].detach()
        return replace(given, arrays=given.arrays | here | old | {"scores": leaves["scores"]})

    leaves = {n: t.requires_grad_() for n, t in table.items()}
    before = read(leaves)
    loss = call(part, before)
    total = reduce_tokens(loss.values, mask, torch.ones(8)) if loss.unit == "token" else reduce_units(loss.values, 1)
    moved = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    after = read(
        {n: t.detach() - (0 if g is None else 0.1 * g) for (n, t), g in zip(leaves.items(), moved, strict=True)}
    )

    def change(word: str) -> torch.Tensor:
        return (after.read(word) - before.read(word)).detach()

    names = catalog.inputs_of(part)
    if "advantages" in names:
        assert (change("logprobs") * advantages)[mask & (advantages != 0)].min() > 0
    elif any(n.startswith("chosen_") for n in names):
        both = (mask.any(1)[given.pairs]).all(1)
        word = next(n for n in names if n.startswith("chosen_")).removeprefix("chosen_")
        assert change(f"chosen_{word}")[both].min() > 0 and change(f"rejected_{word}")[both].max() < 0
    elif "step_labels" in names:
        distance = [(b.arrays["scores"].sigmoid() - b.arrays["step_labels"]).abs() for b in (before, after)]
        assert (distance[1] - distance[0])[mask].max() < 0
    elif "returns" in names:
        distance = [(b.arrays["values"] - b.arrays["returns"]).abs() for b in (before, after)]
        assert (distance[1] - distance[0])[mask].max() < 0
    else:
        assert [base_name(n) for n in names] == ["logprobs"], "say in CREDITS_OTHERWISE what this objective credits"
        assert change("logprobs")[mask].min() > 0
