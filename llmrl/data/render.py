"""Prompts and stored answers as token ids: what is sampled from, and what is trained on."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

from llmrl.errors import DataError
from llmrl.types import Completion, Message, Prompt

FEEDBACK = "<EF>{feedback}</EF>{question}"  # written without a separator before the question

Ids = tuple[int, ...]


def render(prompt: Prompt, tokenizer: Any) -> Ids:
    """The tokens to sample from, up to and including the generation prompt, with `prompt.feedback` written in.

    Messages get exactly what the chat template writes, raw text what the tokenizer puts before a text: so a
    beginning-of-sequence token stands once or not at all. An empty text is the tokenizer's BOS, or its EOS where it has
    no BOS, for a document starts where another ended. Raises DataError without a chat template, or when it refuses.
    """
    prompt = with_feedback(prompt)
    demand_unicode(prompt)
    if prompt.messages is not None:
        return _template(tokenizer, prompt.messages, add_generation_prompt=True)
    plain = tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
    before = opening(tokenizer)
    if before and plain[: len(before)] == before:  # the text was written with its BOS
        before = []
    if not before and not plain:
        start = next((i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), None)
        if start is None:
            raise DataError("the prompt is empty and the tokenizer has neither BOS nor EOS to start from.")
        before = [start]
    return (*before, *plain)


def demand_unicode(prompt: Prompt) -> None:
    """DataError for half of a surrogate pair, which JSON can hold and no tokenizer takes."""
    texts = [prompt.text or "", *(str(message["content"]) for message in prompt.messages or ())]
    for text in texts:
        if half := next((c for c in text if "\ud800" <= c <= "\udfff"), None):
            raise DataError(
                f"its prompt holds {half!r}, half of a surrogate pair; expected Unicode text. Mend the row."
            )


def render_completion(prompt: Prompt, completion: Completion, tokenizer: Any) -> Ids:
    """The tokens of a stored answer after `render(prompt)`, which `prompt.ids` saves working out again where they are set;
    the last one ends the turn, and it stands only there.

    For messages: what the template writes for the whole conversation less the rendered prompt, without what follows the
    end of the turn, such as ChatML's newline. For raw text: its tokens, then EOS. Raises DataError when the rendered
    prompt is no prefix of the rendered conversation, or when an end token stands inside of the answer.
    """
    stops = stop_ids(tokenizer)
    if completion.messages is None:
        ids = [*tokenizer(completion.text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    else:
        context, prompt = prompt.ids or render(prompt, tokenizer), with_feedback(prompt)
        whole = _template(tokenizer, prompt.messages + completion.messages, add_generation_prompt=False)
        if whole[: len(context)] != context:
            raise DataError(
                f"the chat template is not prefix-preserving for the answer {completion.text!r:.60}: prompt and answer "
                "together do not begin with the tokens of the prompt alone. Use a template that writes a turn the same "
                "way whatever follows it, such as TRL's training templates, or give prompt and completion as text."
            )
        ids = list(whole[len(context) :])
        while ids and ids[-1] not in stops:
            ids.pop()
    while len(ids) > 1 and ids[-2] in stops:  # the data had written an end token, too
        ids.pop()
    if not ids or ids[-1] not in stops:
        raise DataError("nothing ends the answer: no EOS, and no end token in the chat template. Set eos_token.")
    if any(i in stops for i in ids[:-1]):
        raise DataError(f"an end token ({tokenizer.convert_ids_to_tokens(sorted(stops))}) stands inside of the answer.")
    return tuple(ids)


def stop_ids(tokenizer: Any, generation_config: Any = None) -> Ids:
    """Every id that ends an answer, ascending: EOS, what the chat template ends a turn with, the model's own list."""
    own = getattr(generation_config, "eos_token_id", None)
    found = {tokenizer.eos_token_id, turn_end(tokenizer, tokenizer.chat_template)}
    found |= set(own) if isinstance(own, list | tuple) else {own}
    return tuple(sorted(i for i in found if i is not None))


@functools.lru_cache(maxsize=8)
def turn_end(tokenizer: Any, chat_template: Any) -> int | None:
    """The first special token that the template writes after an assistant's turn, or None.

    `chat_template`, the tokenizer's own, is there for the cache: a changed template is another key.
    """
    if chat_template is None:
        return None
    ask = {"role": "user", "content": "a"}
    answers = [{"role": "assistant", "content": content} for content in "bc"]
    one, other = (_template(tokenizer, (ask, answer), add_generation_prompt=False) for answer in answers)
    size = min(len(one), len(other))
    same = next((n for n in range(size) if one[-1 - n] != other[-1 - n]), 0)  # 0 too if "b" and "c" are both unknown
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return next((i for i in one[len(one) - same :] if i in special), None)


def opening(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before any raw text: [BOS], nothing, or a few control tokens."""
    plain, whole = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    return next((whole[:n] for n in range(len(whole)) if whole[n : n + len(plain)] == plain), [])


def with_feedback(prompt: Prompt) -> Prompt:
    """The prompt with its feedback in front of the last user turn, or of the raw text, and no condition any more."""
    if prompt.feedback is None:
        return prompt
    written = FEEDBACK.format(feedback=prompt.feedback, question=prompt.question())
    if prompt.messages is None:
        return replace(prompt, text=written, feedback=None)
    users = [i for i, message in enumerate(prompt.messages) if message["role"] == "user"]
    if not users:
        raise DataError(f"prompt {prompt.id} has no user turn to write its feedback into.")
    messages = list(prompt.messages)
    messages[users[-1]] = messages[users[-1]] | {"content": written}
    return replace(prompt, messages=tuple(messages), feedback=None)


def _template(tokenizer: Any, messages: tuple[Message, ...] | None, *, add_generation_prompt: bool) -> Ids:
    if tokenizer.chat_template is None:
        raise DataError(
            f"the prompt is a conversation, but the tokenizer of {tokenizer.name_or_path or 'the model'} has no chat "
            "template. Use the instruction-tuned model, save a chat_template with the tokenizer, or give text prompts."
        )
    try:
        ids = tokenizer.apply_chat_template(
            list(messages or ()), tokenize=True, return_dict=False, add_generation_prompt=add_generation_prompt
        )
    except Exception as error:  # a template raises what it likes
        roles = ", ".join(message["role"] for message in messages or ())
        raise DataError(f"the chat template refuses the turns {roles}: {type(error).__name__}: {error}.") from error
    return tuple(ids)
