"""Attention of packed rows against the textbook's, with a mask over everything."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM

from llmrl.policy import packed
from llmrl.policy.forward import Rows
from llmrl.policy.model import _extremes
from llmrl.policy.packed import Packing

CPU = torch.device("cpu")


def packing_of(groups):
    """groups: for each context its length and those of the segments that continue it."""
    segments, context_of = [], []

    def add(length, context):
        start = segments[-1][1] if segments else 0
        segments.append((start, start + length))
        context_of.append(context)

    for length, followers in groups:
        add(length, None)
        number = len(segments) - 1
        for follower in followers:
            add(follower, number)
    return Packing(segments, context_of, CPU)


def visible(packing):
    """[N,N] which key each query sees."""
    out = torch.zeros(packing.segments[-1][1], packing.segments[-1][1], dtype=torch.bool)
    for (start, stop), context in zip(packing.segments, packing.context_of, strict=True):
        out[start:stop, start:stop] = torch.ones(stop - start, stop - start).tril() > 0
        if context is not None:
            out[start:stop, slice(*packing.segments[context])] = True
    return out


def textbook(q, k, v, packing, scale):
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * (scale or 1 / math.sqrt(q.shape[-1]))
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~visible(packing), -math.inf).softmax(-1), v)


def drawn(packing, heads=4, kv_heads=2, width=8, dtype=torch.float32, size=1.0):
    generator = torch.Generator().manual_seed(0)
    tokens = packing.segments[-1][1]
    shapes = [(tokens, heads, width), (tokens, kv_heads, width), (tokens, kv_heads, width)]
    return [(size * torch.randn(s, generator=generator)).to(dtype).requires_grad_() for s in shapes]


def both(attend, given, packing, scale):
    out = attend(*given, packing, scale)
    weights = torch.linspace(-1, 2, out.numel()).reshape(out.shape).to(out.dtype)
    return out, torch.autograd.grad((out * weights).sum(), given)


group = st.tuples(st.integers(1, 40), st.lists(st.integers(1, 30), max_size=5))


@settings(max_examples=60, deadline=None)
@given(st.lists(group, min_size=1, max_size=4), st.sampled_from([(4, 4), (4, 2), (3, 1)]), st.sampled_from([None, 0.7]))
def test_output_and_gradients_are_the_textbooks(groups, heads, scale):
    packing = packing_of(groups)
    given_ = drawn(packing, *heads)
    found, wanted = (both(f, given_, packing, scale) for f in (packed.by_rectangles, textbook))
    assert_close(found, wanted, rtol=1e-4, atol=2e-5)


def test_scores_of_any_size_stay_finite():
    """One part of a token's keys may outweigh the other by far more than an exponential can hold."""
    packing = packing_of([(9, [5, 17]), (3, [])])
    given_ = drawn(packing, size=40.0)
    found, wanted = (both(f, given_, packing, None) for f in (packed.by_rectangles, textbook))
    assert_close(found[0], wanted[0], rtol=1e-4, atol=1e-3)
    assert all(g.isfinite().all() for g in found[1])


def test_half_precision_is_rounding_away_from_single():
    packing = packing_of([(20, [11, 30]), (7, [3])])
    whole = drawn(packing)
    half = [x.detach().bfloat16().requires_grad_() for x in whole]
    exact = [x.detach().float().requires_grad_() for x in half]
    found, wanted = both(packed.by_rectangles, half, packing, None), both(textbook, exact, packing, None)
    assert found[0].dtype == torch.bfloat16
    assert_close(found[0].float(), wanted[0], rtol=0.02, atol=0.02)
    for mine, theirs in zip(found[1], wanted[1], strict=True):
        assert (mine.float() - theirs).norm() < 0.02 * theirs.norm()


def test_memory_grows_with_the_tokens_and_not_with_their_square():
    def kept(length):
        sizes = []
        packing = packing_of([(length, [length, length])])
        given_ = drawn(packing)

        def pack(tensor):
            sizes.append(tensor.untyped_storage().nbytes())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            packed.by_rectangles(*given_, packing, None)
        return sum(sizes)

    assert 3.9 < kept(256) / kept(64) < 4.1


def test_what_the_kernel_for_gpus_is_given(monkeypatch):
    """That kernel has no CPU version: a loop over its sequences stands for it, keys aligned at the end as it says."""

    def stand_in(query, key, value, *, cu_seq_q, cu_seq_k, max_q, max_k, scale, window_size, enable_gqa):
        out, asked, held = [], cu_seq_q.tolist(), cu_seq_k.tolist()
        assert window_size == (-1, 0) and enable_gqa
        assert max_q == max(b - a for a, b in zip(asked, asked[1:], strict=False))
        assert max_k == max(b - a for a, b in zip(held, held[1:], strict=False))
        for (a, b), (c, d) in zip(zip(asked, asked[1:], strict=False), zip(held, held[1:], strict=False), strict=True):
            seen = torch.ones(b - a, d - c).tril(d - c - (b - a)) > 0
            q, k, v = (x.transpose(0, 1) for x in (query[a:b], key[c:d], value[c:d]))
            k, v = (x.repeat_interleave(len(q) // len(k), 0) for x in (k, v))
            got = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale)
            out.append(got.transpose(0, 1))
        return torch.cat(out)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", stand_in)
    packing = packing_of([(9, [4, 1]), (3, []), (5, [6, 6, 2])])
    given_ = drawn(packing, dtype=torch.bfloat16)
    exact = [x.detach().float().requires_grad_() for x in given_]
    found, wanted = both(packed.by_kernel, given_, packing, None), both(textbook, exact, packing, None)
    assert_close(found[0].float(), wanted[0], rtol=0.02, atol=0.02)
    for mine, theirs in zip(found[1], wanted[1], strict=True):
        assert (mine.float() - theirs).norm() < 0.02 * theirs.norm()


def test_the_kernel_for_gpus_refuses_single_precision():
    packing = packing_of([(9, [4])])
    with pytest.raises(packed.Unpackable, match="float32"):
        packed.by_kernel(*drawn(packing), packing, None)


def test_a_model_without_packed_rows_is_as_before_and_its_folder_too(tmp_path):
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0
    )
    model = LlamaForCausalLM(config).eval()
    ids, mask = torch.arange(1, 21).reshape(2, 10), torch.ones(2, 10, dtype=torch.long)
    mask[0, :3] = 0
    before = model(input_ids=ids, attention_mask=mask).logits
    assert packed.longest(model) == 0
    packed.enable(model)
    assert packed.longest(model) == math.inf
    assert_close(model(input_ids=ids, attention_mask=mask).logits[mask > 0], before[mask > 0], rtol=0, atol=0)
    model.save_pretrained(tmp_path)
    assert packed.NAME not in (tmp_path / "config.json").read_text()


def test_the_first_comparison_sees_the_longest_and_the_shortest_row():
    contexts = [(1,), (2, 2), (1,), (2, 2), (3,) * 9, (3,) * 9, (3,) * 9, (3,) * 9, (3,) * 9, (4,) * 5]
    responses = [(1,) * n for n in (4, 2, 1, 3, 5, 20, 2, 9, 8, 7)]
    rows = Rows(contexts, responses, [(True,) * len(r) for r in responses], [1.0] * len(contexts))
    assert _extremes(rows) == [5, 7, 8, 4, 2, 0]
    assert rows.take([2, 5]).responses == [responses[2], responses[5]]
