from dataclasses import replace

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import GenerationConfig

from llmrl.data.render import render, render_completion, stop_ids
from llmrl.errors import DataError
from llmrl.policy.tiny import CHATML, byte_tokenizer
from llmrl.types import Completion, Prompt

LLAMA = (
    "{{ '<s>' }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' }}"
    "{{ m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
MISTRAL = (
    "{{ '<s>' }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + '</s>' }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
DROPS_THINKING = (  # opens a thought for the model to go on from, but writes finished turns without one
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
)
SPECIAL = ["<s>", "</s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
QUESTION = Prompt("p", messages=({"role": "user", "content": "Hi"},))


def tokenizer(template=CHATML, *, eos="<|im_end|>", bos=False, adds_eos=False):
    """One id a byte, with the special tokens of several families; `bos`: raw text is encoded with <s> before it."""
    made = byte_tokenizer([])
    made.add_special_tokens({"eos_token": eos, "bos_token": "<s>", "extra_special_tokens": ["<|im_start|>", *SPECIAL]})
    made.chat_template = template
    if bos:
        pattern = "<s> $A </s>" if adds_eos else "<s> $A"
        ids = [(token, made.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
        made.backend_tokenizer.post_processor = TemplateProcessing(single=pattern, special_tokens=ids)
    return made


def answer(text):
    return Completion(text, ({"role": "assistant", "content": text},))


FAMILIES = {  # name: (template, eos, raw text begins with BOS, rendered prompt, rendered answer "Yes")
    "chatml": (CHATML, "<|im_end|>", False, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "Yes<|im_end|>"),
    "chatml-bos": (
        CHATML,
        "<|im_end|>",
        True,
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        "Yes<|im_end|>",
    ),
    "llama": (
        LLAMA,
        "<|eot_id|>",
        True,
        "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "Yes<|eot_id|>",
    ),
    "mistral": (MISTRAL, "</s>", True, "<s>[INST] Hi [/INST]", " Yes</s>"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_templates_write_bos_and_the_end_of_turn_once(family):
    template, eos, bos, prompt, response = FAMILIES[family]
    made = tokenizer(template, eos=eos, bos=bos)
    assert made.decode(render(QUESTION, made)) == prompt
    ids = render_completion(QUESTION, answer("Yes"), made)
    assert made.decode(ids) == response
    assert ids[-1] == made.eos_token_id and ids.count(made.eos_token_id) == 1


def test_a_base_models_eos_does_not_hide_the_templates_end_of_turn():
    made = tokenizer(CHATML, eos="</s>")
    assert made.decode(render_completion(QUESTION, answer("Yes"), made)) == "Yes<|im_end|>"
    assert stop_ids(made) == tuple(sorted(made.convert_tokens_to_ids(["</s>", "<|im_end|>"])))


def test_stop_ids():
    assert stop_ids(tokenizer(None)) == (2,)
    assert stop_ids(tokenizer(CHATML)) == (2,)
    llama = tokenizer(LLAMA, eos="</s>")
    eot, end = llama.convert_tokens_to_ids(["<|eot_id|>", "</s>"])
    assert set(stop_ids(llama)) == {eot, end}
    assert set(stop_ids(llama, GenerationConfig(eos_token_id=[end, 7]))) == {7, eot, end}
    assert set(stop_ids(llama, GenerationConfig(eos_token_id=7))) == {7, eot, end}


def test_raw_text_has_what_its_tokenizer_puts_before_it_once():
    prompt, bos = Prompt("p", text="Hi"), tokenizer(bos=True)
    assert tokenizer().decode(render(prompt, tokenizer())) == "Hi"
    for made in (bos, tokenizer(bos=True, adds_eos=True)):
        assert made.decode(render(prompt, made)) == "<s>Hi"
    assert bos.decode(render(Prompt("p", text="<s>Hi"), bos)) == "<s>Hi"


def test_an_empty_text_begins_with_bos_or_else_eos():
    without = byte_tokenizer([])
    assert render(Prompt("p", text=""), without) == (without.eos_token_id,)
    for bos in (True, False):
        made = tokenizer(bos=bos)
        assert made.decode(render(Prompt("p", text=""), made)) == "<s>"
    without.eos_token = None
    with pytest.raises(DataError, match="neither BOS nor EOS"):
        render(Prompt("p", text=""), without)


def test_raw_completions_have_no_bos_and_one_eos():
    prompt, made = Prompt("p", text="2+2="), tokenizer(bos=True, adds_eos=True, eos="</s>")
    for text in ("4", "4</s>"):
        assert made.decode(render_completion(prompt, Completion(text), made)) == "4</s>"
    assert render_completion(prompt, Completion(""), made) == (made.eos_token_id,)
    with pytest.raises(DataError, match="stands inside of the answer"):
        render_completion(prompt, Completion("4</s>5"), made)


def test_an_end_of_turn_in_the_data_is_not_doubled():
    made = tokenizer()
    assert made.decode(render_completion(QUESTION, answer("Yes<|im_end|>"), made)) == "Yes<|im_end|>"
    with pytest.raises(DataError, match="stands inside of the answer"):
        render_completion(QUESTION, answer("Yes<|im_end|>No"), made)


def test_prompt_and_answer_together_are_the_conversation():
    made = tokenizer()
    turns = [*QUESTION.messages, {"role": "assistant", "content": "Yes"}]
    whole = made.apply_chat_template(turns, tokenize=True, return_dict=False)
    assert made.decode(whole[-1:]) == "\n"
    assert list(render(QUESTION, made) + render_completion(QUESTION, answer("Yes"), made)) == whole[:-1]


def test_several_turns_and_a_system_turn():
    made = tokenizer()
    turns = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")]
    prompt = Prompt("p", messages=tuple({"role": role, "content": content} for role, content in turns))
    written = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
    assert made.decode(render(prompt, made)) == written + "<|im_start|>assistant\n"
    assert made.decode(render_completion(prompt, answer("d"), made)) == "d<|im_end|>"


def test_a_template_that_is_not_prefix_preserving_is_refused():
    made = tokenizer(DROPS_THINKING)
    assert made.decode(render(QUESTION, made)).endswith("<think>\n")
    with pytest.raises(DataError, match="not prefix-preserving"):
        render_completion(QUESTION, answer("Yes"), made)


def test_a_template_without_an_end_of_turn_is_refused():
    made = tokenizer("{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}")
    with pytest.raises(DataError, match="nothing ends the answer"):
        render_completion(QUESTION, answer("Yes"), made)


def test_messages_need_a_template_that_takes_them():
    with pytest.raises(DataError, match="has no chat template"):
        render(QUESTION, tokenizer(None))
    system = Prompt("p", messages=({"role": "system", "content": "s"}, *QUESTION.messages))
    with pytest.raises(DataError, match="refuses the turns system, user: .*only user and assistant"):
        render(system, tokenizer(MISTRAL))


def test_feedback_stands_before_the_last_question():
    made = tokenizer(bos=True)
    first = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
    prompt = Prompt("p", messages=(*first, *QUESTION.messages)).conditioned("{good}")
    assert made.decode(render(prompt, made)).endswith("user\n<EF>{good}</EF>Hi<|im_end|>\n<|im_start|>assistant\n")
    assert "user\na<|im_end|>" in made.decode(render(prompt, made))
    assert made.decode(render_completion(prompt, answer("Yes"), made)) == "Yes<|im_end|>"
    assert render(replace(prompt, feedback=None), made) == render(Prompt("p", messages=prompt.messages), made)
    assert made.decode(render(Prompt("p", text="Hi").conditioned("good"), made)) == "<s><EF>good</EF>Hi"


def test_rendering_leaves_the_prompt_as_it_was():
    render(QUESTION.conditioned("good"), tokenizer())
    assert QUESTION.messages == ({"role": "user", "content": "Hi"},)
