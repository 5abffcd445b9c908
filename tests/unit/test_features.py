"""What methods read off an answer's text, laid on tokens of one byte: several of them to many a character."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import tensor
from torch.testing import assert_close
from transformers import AutoTokenizer

from llmrl.data.features import (
    DIMENSIONS,
    block_array,
    calls,
    embedding,
    features,
    first_calls,
    hashed,
    signature,
    step_arrays,
    steps_of,
)
from llmrl.policy.tiny import tiny
from llmrl.types import Rollout


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Every byte a token."""
    folder = tiny(str(tmp_path_factory.mktemp("bytes")), hidden=16, layers=1, heads=2, kv_heads=1, vocabulary="bytes")
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def wrote(tokenizer):
    """Rollouts of these texts; `end` adds the end-of-turn token, which no text shows."""

    def made(*texts, end=False):
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        return [Rollout((*i, *([tokenizer.eos_token_id] if end else [])), t) for i, t in zip(ids, texts, strict=True)]

    return made


def places(text, *pieces):
    """[T] of an answer of one-byte tokens: k on the bytes of piece k, found one after the other; -1 elsewhere."""
    out, at = [-1] * len(text.encode()), 0
    for number, piece in enumerate(pieces):
        at = text.index(piece, at)
        first = len(text[:at].encode())
        at += len(piece)
        out[first : len(text[:at].encode())] = [number] * len(piece.encode())
    return out


def test_every_character_is_a_token_a_byte(wrote):
    (rollout,) = wrote("é→🙂")
    assert len(rollout.ids) == 2 + 3 + 4


@pytest.mark.parametrize(
    ("text", "ends"),
    [("a\nb\n", [2, 4]), ("a\nb", [2, 3]), ("ab", [2]), ("", [0]), ("\n", [1]), ("a\n\nb", [2, 3, 4])],
)
def test_a_step_ends_behind_its_tag_and_the_last_at_the_end(text, ends):
    assert steps_of(text, "\n") == ends


def test_steps_lie_on_the_bytes_of_their_characters(tokenizer, wrote):
    text = "Zürich →\n東京\nsó 4"
    found = step_arrays(wrote(text), 40, "\n", tokenizer)
    written = places(text, "Zürich →\n", "東京\n", "só 4")
    assert found["step_ids"].tolist() == [written + [-1] * (40 - len(written))]
    said = [hashed(step) for step in ("zürich →", "東京", "só 4")]
    assert found["step_hashes"][0].tolist() == [said[k] if k >= 0 else -1 for k in found["step_ids"][0].tolist()]


def test_the_end_of_turn_belongs_to_the_last_step(tokenizer, wrote):
    for text, steps in (("a\nb", [0, 0, 1, 1]), ("a\nb\n", [0, 0, 1, 1, 1]), ("ab", [0, 0, 0])):
        found = step_arrays(wrote(text, end=True), 6, "\n", tokenizer)
        assert found["step_ids"].tolist() == [steps + [-1] * (6 - len(steps))]


def test_steps_without_a_word_belong_to_the_one_before(tokenizer, wrote):
    text = "a\n\n \nb\n"
    found = step_arrays(wrote(text), 7, "\n", tokenizer)
    assert found["step_ids"].tolist() == [[0, 0, 0, 0, 0, 1, 1]]
    assert found["step_hashes"].tolist() == [[hashed("a")] * 5 + [hashed("b")] * 2]


def test_equal_steps_share_a_hash_up_to_case_and_blanks(tokenizer, wrote):
    found = step_arrays(wrote("So  A\nthen b", "so a\nso A"), 12, "\n", tokenizer)["step_hashes"]
    assert found[0, 0] == found[1, 0] == found[1, 6] and found[0, 7] != found[1, 6]


def test_answers_without_a_tag_or_a_token_have_one_step_or_none(tokenizer, wrote):
    found = step_arrays(wrote("abc", "", "  "), 3, "\n", tokenizer)
    assert found["step_ids"].tolist() == [[0, 0, 0], [-1, -1, -1], [0, 0, -1]]
    assert found["step_hashes"][1].tolist() == [-1, -1, -1]
    only_end = step_arrays(wrote("", end=True), 2, "\n", tokenizer)
    assert only_end["step_ids"].tolist() == [[0, -1]]


def test_an_answer_cut_inside_of_a_character_keeps_its_steps(tokenizer, wrote):
    (whole,) = wrote("é\n→🙂")
    ids = whole.ids[:-2]  # two of the four bytes of the last character
    cut = replace(whole, ids=ids, text=tokenizer.decode(list(ids)), truncated=True)
    assert step_arrays([cut], 9, "\n", tokenizer)["step_ids"].tolist() == [[0, 0, 0, 1, 1, 1, 1, 1, -1]]


def test_blocks_hold_their_tags_and_nothing_beside_them(tokenizer, wrote):
    text = "hm <a>é</a> → <b>7</b>!"
    found = block_array(wrote(text, end=True), 40, ["a", "b"], tokenizer)
    written = places(text, "<a>é</a>", "<b>7</b>")
    assert found.tolist() == [written + [-1] * (40 - len(written))]


@pytest.mark.parametrize("text", ["", "no tag", "<a>open", "close</a>", "</a><a>", "< a>x</a >"])
def test_an_answer_without_the_whole_segment_has_no_block(tokenizer, wrote, text):
    assert (block_array(wrote(text), 12, ["a"], tokenizer) == -1).all()


def test_the_first_of_two_segments_counts_and_the_order_of_tags_does_not(tokenizer, wrote):
    text = "<b>1</b><a>2</a><a>3</a>"
    found = block_array(wrote(text), len(text), ["a", "b"], tokenizer)
    assert found.tolist() == [[1] * 8 + [0] * 8 + [-1] * 8]


def test_calls_are_counted_and_the_first_is_placed(tokenizer, wrote):
    rollouts = wrote("→ <call>x</call> <call>", "none", "", "<call>", end=True)
    assert calls(rollouts, "<call>").tolist() == [2, 0, 0, 1]
    assert first_calls(rollouts, "<call>", tokenizer).tolist() == [4, -1, -1, 0]  # the arrow has three bytes


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("12 or 1,234.50", "last_number", "1234.50"),
        ("it is -7.", "last_number", "-7"),
        ("so\nNo Number \n\n", "last_number", "no number"),
        ("first\n Last  LINE\n \n", "last_line", "last line"),
        ("A\n b", "text", "a b"),
        ("", "last_number", ""),
        ("", "last_line", ""),
        ("", "text", ""),
    ],
)
def test_what_an_answer_says_in_the_end(text, kind, said):
    assert signature(text, kind) == said


def test_embeddings_are_unit_vectors_of_the_wording():
    one, same, other, near = map(embedding, ("The cat sat", "the  CAT sat ", "17 * 4 = 68", "the cat sits"))
    assert_close(one, same)
    assert float(one @ other) < float(one @ near) < 1
    for text in ("", "  ", "a", "東", "a longer text, a longer text"):
        assert_close(embedding(text).norm(), tensor(1.0))
    assert embedding("")[0] == 1 and embedding("").shape == (DIMENSIONS,)


def test_hashes_are_numbers_that_a_tensor_holds_and_the_same_everywhere():
    assert hashed("a") == 1170416445458845835 and 0 <= hashed("\ud800") < 2**62


def test_only_what_is_wanted_is_made(tokenizer, wrote):
    data = SimpleNamespace(blocks=["a"], tool_call="<call>", signature="last_number", step_tag="\n")
    rollouts = wrote("<a>1</a>", "2.0", "2.0 and")
    names = {"block_ids", "strata", "first_calls", "signatures", "embeddings", "step_ids", "step_hashes"}
    found = features(rollouts, 8, names | {"logprobs"}, data, tokenizer)
    assert found.keys() == names
    assert found["signatures"][1] == found["signatures"][2] != found["signatures"][0]
    assert features(rollouts, 8, {"strata"}, data, tokenizer).keys() == {"strata"}
    assert features(rollouts, 8, set(), data, tokenizer) == {}
    none = features([], 1, names, data, tokenizer)
    shapes = {name: tuple(array.shape) for name, array in none.items()}
    assert shapes == {name: (0,) for name in ("strata", "first_calls", "signatures")} | {
        name: (0, 1) for name in ("block_ids", "step_ids", "step_hashes")
    } | {"embeddings": (0, DIMENSIONS)}
    assert all(found[name].dtype == torch.long for name in names - {"embeddings"})
