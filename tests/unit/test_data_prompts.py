import json
from collections import Counter

import pytest

from llmrl.config import Data
from llmrl.data.prompts import LoadReport, PromptSet, load
from llmrl.errors import DataError
from llmrl.policy.tiny import byte_tokenizer
from llmrl.types import Prompt


def loaded(tmp_path, rows, **options):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return load(Data(source=str(path), **options), byte_tokenizer([]), seed=0)


def prompt_set(size, shuffle=True):
    return PromptSet([Prompt(str(i), text=str(i)) for i in range(size)], LoadReport(size, size, 0, 0, 1), shuffle)


def ids(batch):
    return [int(prompt.id) for prompt in batch]


def test_prompts_are_rendered(tmp_path):
    prompts = loaded(tmp_path, [{"prompt": [{"role": "user", "content": "Hi"}]}])
    made = byte_tokenizer([])
    assert made.decode(prompts.prompts[0].ids) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert len(prompts) == 1


def test_long_prompts_are_refused_and_counted(tmp_path):
    prompts = loaded(tmp_path, [{"prompt": "a" * n} for n in (3, 4, 5, 900)], max_prompt_tokens=4)
    assert [len(prompt.ids) for prompt in prompts.prompts] == [3, 4]
    assert prompts.report == LoadReport(rows=4, kept=2, too_long=2, bad=0, longest=4)
    assert str(prompts.report) == (
        "4 rows: 2 prompts kept, 2 refused as too long, 0 unusable; the longest kept has 4 tokens"
    )
    with pytest.raises(DataError, match=r"3 refused as too long.*max_prompt_tokens is 2; the longest refused has 3"):
        loaded(tmp_path, [{"prompt": "aaa"}] * 3, max_prompt_tokens=2)


def test_bad_rows_are_left_out_with_a_reason(tmp_path):
    rows = [{"prompt": "a"}, {"question": "b"}, {"prompt": "c"}, {"prompt": 4}]
    prompts = loaded(tmp_path, rows)
    assert [prompt.text for prompt in prompts.prompts] == ["a", "c"]
    assert prompts.report.bad == 2 and len(prompts.report.reasons) == 2
    assert prompts.report.reasons[0].startswith("row 2: no format fits")
    assert prompts.report.reasons[1].startswith("row 4: prompt is 4")


def test_more_than_half_bad_rows_are_an_error_with_three_reasons(tmp_path):
    rows = [{"prompt": "a"}] + [{"question": str(i)} for i in range(5)]
    with pytest.raises(DataError, match="row 2:") as caught:
        loaded(tmp_path, rows)
    assert "row 4:" in str(caught.value) and "row 5:" not in str(caught.value)


def test_a_template_that_refuses_a_row_makes_it_a_bad_row(tmp_path):
    made = byte_tokenizer([])
    made.chat_template = (
        "{% for m in messages %}{{ m.content if m.role == 'user' else raise_exception('no') }}{% endfor %}"
    )
    rows = [{"prompt": [{"role": role, "content": "a"}]} for role in ("user", "user", "tool")]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    report = load(Data(source=str(path)), made, seed=0).report
    assert report.kept == 2 and report.reasons[0].startswith("row 3: the chat template refuses the turns tool")


def test_equal_rows_have_different_ids(tmp_path):
    prompts = loaded(tmp_path, [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}, {"prompt": "a"}]).prompts
    first = prompts[0].id
    assert [prompt.id for prompt in prompts] == [first, prompts[1].id, f"{first}-2", f"{first}-3"]


@pytest.mark.parametrize(("count", "size"), [(10, 4), (7, 7), (5, 12), (9, 2), (1, 3)])
def test_every_epoch_has_every_prompt_once(count, size):
    dealt = [i for step in range(count * 3) for i in ids(prompt_set(count).batch(step, size, seed=1))]
    assert len(dealt) == 3 * count * size
    for epoch in range(3 * size):
        assert sorted(dealt[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_a_prompt_stands_twice_in_a_batch_only_over_the_end_of_an_epoch():
    prompts = prompt_set(10)
    for step in range(20):  # size 4 of 10: an epoch ends inside of a batch when step * 4 % 10 is 8
        repeats = max(Counter(ids(prompts.batch(step, 4, seed=3))).values())
        assert repeats == 1 or (step * 4) % 10 == 8


def test_batches_depend_on_step_size_and_seed_alone():
    prompts = prompt_set(50)
    late = ids(prompts.batch(9, 8, seed=1))
    for step in range(9):
        prompts.batch(step, 8, seed=2)
    assert ids(prompt_set(50).batch(9, 8, seed=1)) == late
    assert ids(prompts.batch(9, 8, seed=2)) != late
    epochs = [ids(prompts.batch(epoch, 50, seed=1)) for epoch in range(2)]
    assert epochs[0] != epochs[1] and epochs[0] != list(range(50))


def test_without_shuffle_the_datas_order_goes_round():
    assert [ids(prompt_set(5, shuffle=False).batch(step, 3, seed=1)) for step in range(3)] == [
        [0, 1, 2],
        [3, 4, 0],
        [1, 2, 3],
    ]


def test_shuffle_comes_from_the_recipe(tmp_path):
    rows = [{"prompt": chr(97 + i)} for i in range(26)]
    in_order = loaded(tmp_path, rows, shuffle=False).batch(0, 26, seed=0)
    assert "".join(prompt.text for prompt in in_order) == "abcdefghijklmnopqrstuvwxyz"
    assert loaded(tmp_path, rows).batch(0, 26, seed=0) != in_order
