"""Chat templates out of pieces: written within the limits, refused, or raising what becomes a DataError."""

import copy

import pytest
from fuzzing import inputs, survives
from hypothesis import given
from hypothesis import strategies as st

from llmrl.data import tokenizer as tokenizers
from llmrl.data.render import render, stop_ids
from llmrl.types import Prompt

PIECES = [
    "{% for m in messages %}", "{% endfor %}", "{{ m.content }}", "{{ messages[0].content * 9999 }}", "{% if x %}", "{% endif %}",
    "{% for i in range(99999) %}", "{{ 9 ** 9999999 }}", "{{ '9' | int ** 99 }}", "{{ 'a' | center(999999999) }}", "<|im_start|>",
    "{{ [0] * 99999999 }}", "{% set x = x ~ x %}", "{{ raise_exception('no') }}", "{{ messages.__class__.__mro__ }}",
    "{{ ''.join.__globals__ }}", "{{ strftime_now('%s') }}", "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "{%", "}}",
    "{{ messages | tojson }}", "{{ '%999999999d' | format(1) }}", "{% include 'x' %}", "{{ lipsum(99999) }}", "\x00", "\ud800",
    "{% generation %}", "{% endgeneration %}", "{% break %}",
]  # fmt: skip


@pytest.fixture(scope="module")
def loaded(tiny_folder):
    return tokenizers.load_tokenizer(tiny_folder)


@inputs(50)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=6))
def test_templates(loaded, pieces):
    tokenizers.SECONDS, before = 1, tokenizers.SECONDS
    tokenizer = copy.copy(loaded)
    tokenizer.chat_template = "".join(pieces)
    try:
        tokenizers.check_template(tokenizer, "here")
    except tokenizers.ModelError:
        return
    finally:
        tokenizers.SECONDS = before
    survives(
        lambda: (stop_ids(tokenizer), render(Prompt("a", messages=({"role": "user", "content": "1"},)), tokenizer))
    )
