"""Does the response have the think-then-answer form?"""

from __future__ import annotations

from llmrl.types import Prompt, Rollout, Score


def format_tags(prompt: Prompt, rollout: Rollout, *, think: str = "think", answer: str = "answer") -> Score:
    """1.0 if the text is <think>...</think><answer>...</answer>, each tag once and only space around, else 0.0.

    think, answer: the tags' names.
    """
    return Score(float(is_tagged(rollout.text, think=think, answer=answer)))


def is_tagged(text: str, *, think: str = "think", answer: str = "answer") -> bool:
    """Whether the text is one think block, then one answer block, and nothing else but space."""
    text = text.strip()
    if any(text.count(tag) != 1 for tag in (f"<{think}>", f"</{think}>", f"<{answer}>", f"</{answer}>")):
        return False
    after_thoughts = text.partition(f"</{think}>")[2].lstrip()
    return (
        text.startswith(f"<{think}>")
        and after_thoughts.startswith(f"<{answer}>")
        and after_thoughts.endswith(f"</{answer}>")
    )
