"""Does the response have the think-then-answer form?"""

from __future__ import annotations

from llmrl.limits import limits
from llmrl.types import Prompt, Rollout, Score


@limits(seconds=10, confined=True)
def format_tags(
    prompt: Prompt,
    rollout: Rollout,
    *,
    think: str = "think",
    answer: str = "answer",
    opened: bool = False,
    partial: bool = False,
) -> Score:
    """1.0 if the text is <think>...</think><answer>...</answer>, each tag once and only space around, else 0.0.

    think, answer: the tags' names; with an empty `answer` anything may follow </think>, TRL's think_format_reward.
    opened: the prompt ends with the opening think tag, so the response begins inside of it. partial: text of another
    form earns an equal share for each tag that occurs exactly once, as open-r1's tag count; all tags in the wrong
    order earn no more than all but one.
    """
    text = f"<{think}>{rollout.text}" if opened else rollout.text
    wanted = tags(think, answer)
    missing = [tag for tag in wanted if text.count(tag) != 1]
    whole = is_tagged(text, think=think, answer=answer)
    share = min(len(wanted) - len(missing), len(wanted) - 1) / len(wanted) if partial else 0.0
    if whole:
        feedback = "The response has the required tags."
    elif missing:
        feedback = f"Expected each of these tags exactly once: {' '.join(missing)}."
    else:
        feedback = f"Expected nothing but {'...'.join(wanted)}, in this order."
    return Score(1.0 if whole else share, feedback=feedback, evidence={"whole": whole, "not_once": missing})


def tags(think: str, answer: str) -> list[str]:
    """The tags in their order."""
    return [f"<{think}>", f"</{think}>"] + ([f"<{answer}>", f"</{answer}>"] if answer else [])


def is_tagged(text: str, *, think: str = "think", answer: str = "answer") -> bool:
    """Whether the text is one think block, then one answer block, and nothing else but space."""
    text = text.strip()
    if any(text.count(tag) != 1 for tag in tags(think, answer)):
        return False
    thoughts, _, rest = text.partition(f"</{think}>")
    if not answer:
        return thoughts.startswith(f"<{think}>")
    return (
        thoughts.startswith(f"<{think}>") and rest.lstrip().startswith(f"<{answer}>") and rest.endswith(f"</{answer}>")
    )


def after_thoughts(text: str, *, think: str = "think") -> str:
    """What stands after the last </think>; the whole text where there is none."""
    return text.rpartition(f"</{think}>")[2]
