"""The published data sets, as they are, through the whole data layer."""

import json
from pathlib import Path

import pytest

from llmrl.config import Data
from llmrl.data.formats import to_prompt
from llmrl.data.prompts import load
from llmrl.data.render import render_completion
from llmrl.data.turns import dialogue
from llmrl.policy.tiny import byte_tokenizer

FOLDER = Path(__file__).parents[2].parent / "shared" / "data"
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not FOLDER.is_dir(), reason="no ../shared/data beside the checkout: published data not there"),
]


def test_every_gsm8k_prompt_loads_and_none_is_lost_silently():
    data = Data(source=str(FOLDER / "gsm8k_train.jsonl"), user="{question}", max_prompt_tokens=512)
    tokenizer = byte_tokenizer([])
    prompts = load(data, tokenizer, seed=0)
    assert prompts.report.rows == 7473 and prompts.report.bad == 0
    assert prompts.report.kept + prompts.report.too_long == 7473 and len(prompts) == prompts.report.kept
    assert len({prompt.id for prompt in prompts.prompts}) == len(prompts)
    rows = [json.loads(line) for line in (FOLDER / "gsm8k_train.jsonl").open(encoding="utf-8")]
    glue = (
        len("<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n") - 2 * len("<|im_start|>") - len("<|im_end|>") + 3
    )
    lengths = [len(row["question"].encode()) + glue for row in rows]  # one token a byte
    assert prompts.report.longest == max(length for length in lengths if length <= 512)
    assert prompts.report.too_long == sum(length > 512 for length in lengths) > 0
    kept = [row for row, length in zip(rows, lengths, strict=True) if length <= 512]
    for prompt, row in zip(prompts.prompts, kept, strict=True):
        assert prompt.question() == row["question"] and prompt.reference == row["answer"]
        assert tokenizer.decode(prompt.ids, skip_special_tokens=True) == f"user\n{row['question']}\nassistant\n"


@pytest.fixture(scope="module")
def hh():
    return [json.loads(line) for line in (FOLDER / "hh_harmless_pairs.jsonl").open(encoding="utf-8")]


def test_all_hh_pairs_parse_as_published(hh):
    tokenizer = byte_tokenizer([])
    data = Data(source=str(FOLDER / "hh_harmless_pairs.jsonl"), max_prompt_tokens=4096)
    prompts = load(data, tokenizer, seed=0)
    assert (prompts.report.rows, prompts.report.kept, prompts.report.reasons) == (1000, 1000, ())  # none is refused
    empty = 0
    for prompt, row in zip(prompts.prompts, hh, strict=True):
        for completion in prompt.completions:
            turns = [*prompt.messages, *completion.messages]
            written = "".join(
                f"\n\n{'Human' if turn['role'] == 'user' else 'Assistant'}: {turn['content']}" for turn in turns
            )
            assert written.split() == row[completion.label].split()  # turns are stripped
            ids = render_completion(prompt, completion, tokenizer)
            assert tokenizer.decode(ids) == completion.text + "<|im_end|>"
            empty += not completion.text
    assert empty == 3  # answers of no text, as published: kept


def test_hh_equals_the_implicit_prompt_form_of_trl(hh):
    from trl.data_utils import extract_prompt

    for number, row in enumerate(hh, 1):
        turns = {side: list(dialogue(row[side])) for side in ("chosen", "rejected")}
        ours, implicit = to_prompt(row, Data(source="x"), number), to_prompt(turns, Data(source="x"), number)
        theirs = extract_prompt(turns)
        assert list(ours.messages) == list(implicit.messages) == theirs["prompt"]
        assert ours.completions == implicit.completions
        assert [list(c.messages) for c in ours.completions] == [theirs["chosen"], theirs["rejected"]]


def test_implicit_prompts_in_text_are_split_where_trl_splits_them(hh):
    from trl.data_utils import extract_prompt

    for number, row in enumerate(hh, 1):
        ours, theirs = to_prompt(row, Data(source="x", format="pairs"), number), extract_prompt(row)
        assert [ours.text, *(c.text for c in ours.completions)] == list(theirs.values())
