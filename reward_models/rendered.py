"""A response as a learned scorer reads it: by the scorer's own tokenizer and chat template."""

from __future__ import annotations

import re
from typing import Any

from llmrl.data.render import Ids, render, render_completion
from llmrl.types import Completion, Prompt

LONGEST = 200_000  # characters of a response


def rendered(prompt: Prompt, text: str, tokenizer: Any, longest: int | None = None) -> tuple[Ids, Ids]:
    """(context, response): what a replayed answer of that text is trained on, so training and scoring see the same.

    The prompt is read without a feedback condition. Raises ValueError for a text of more than 200,000 characters and for
    more tokens than `longest`, DataError where the template refuses.
    """
    if len(text) > LONGEST:
        raise ValueError(f"the response has {len(text):,} characters; at most {LONGEST:,} are read")
    prompt = prompt.conditioned(None)
    context, response = render(prompt, tokenizer), render_completion(prompt, answer(prompt, text, tokenizer), tokenizer)
    if longest is not None and len(context) + len(response) > longest:
        raise ValueError(f"{len(context) + len(response)} tokens, the model has {longest} positions")
    return context, response


def answer(prompt: Prompt, text: str, tokenizer: Any) -> Completion:
    """The text as an answer to the prompt, without what would read as a special token."""
    text = harmless(text, tokenizer)
    return Completion(text, None if prompt.messages is None else ({"role": "assistant", "content": text},))


def harmless(text: str, tokenizer: Any) -> str:
    """The text with what would read as a special token replaced by a space, and lone surrogates by question marks.

    A response that spells out the end of its turn could otherwise write the turns that follow.
    """
    text = text.encode(errors="replace").decode()
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return re.sub("|".join(map(re.escape, special)), " ", text) if special else text
