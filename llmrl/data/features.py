"""What methods read off an answer's text: its steps, segments, tool calls, what it says in the end, how it is worded."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from llmrl.data.steps import laid_on_sampled
from llmrl.types import Rollout

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
DIMENSIONS = 256  # of an embedding; n-grams of characters are hashed into them
NGRAM = 4


def steps_of(text: str, tag: str) -> list[int]:
    """Where each step of the text ends, in characters: behind each tag, and at the end."""
    ends = [m.end() for m in re.finditer(re.escape(tag), text)]
    return ends if ends and ends[-1] == len(text) else [*ends, len(text)]


def step_arrays(rollouts: Sequence[Rollout], width: int, tag: str, tokenizer: Any) -> dict[str, Tensor]:
    """`step_ids` and `step_hashes` [B,width]: a token belongs to the step that its last character is in. Steps of blanks
    alone belong to the one before.
    """
    ids = torch.full((len(rollouts), width), -1, dtype=torch.long)
    hashes = ids.clone()
    for row, rollout in enumerate(rollouts):
        if not rollout.ids:
            continue
        ends = steps_of(rollout.text, tag)
        last = laid_on_sampled(rollout.ids, rollout.text, tuple((end, 0.0) for end in ends), tokenizer)
        start = token = number = 0
        for end, (place, _) in zip(ends, last, strict=True):
            said = " ".join(rollout.text[start:end].lower().split())
            if not said and number:
                number -= 1
                said_hash = int(hashes[row, token - 1])
            else:
                said_hash = hashed(said)
            ids[row, token : place + 1], hashes[row, token : place + 1] = number, said_hash
            start, token, number = end, max(token, place + 1), number + 1
        ids[row, token : len(rollout.ids)], hashes[row, token : len(rollout.ids)] = (
            ids[row, token - 1],
            hashes[row, token - 1],
        )
    return {"step_ids": ids, "step_hashes": hashes}


def block_array(rollouts: Sequence[Rollout], width: int, tags: Sequence[str], tokenizer: Any) -> Tensor:
    """`block_ids` [B,width]: k between `<tag k>` and `</tag k>`, both included; -1 where an answer lacks the segment."""
    out = torch.full((len(rollouts), width), -1, dtype=torch.long)
    for row, rollout in enumerate(rollouts):
        for number, tag in enumerate(tags):
            opens = rollout.text.find(f"<{tag}>")
            closes = rollout.text.find(f"</{tag}>", opens)
            if opens < 0 or closes < 0:
                continue
            spans = ((opens + 1, 0.0), (closes + len(tag) + 3, 0.0))
            (first, _), (last, _) = laid_on_sampled(rollout.ids, rollout.text, spans, tokenizer)
            out[row, first : last + 1] = number
    return out


def calls(rollouts: Sequence[Rollout], opening: str) -> Tensor:
    """`strata` [B]: how often a tool is called."""
    return torch.tensor([r.text.count(opening) for r in rollouts], dtype=torch.long)


def first_calls(rollouts: Sequence[Rollout], opening: str, tokenizer: Any) -> Tensor:
    """`first_calls` [B]: the position of the token that the first call begins with, -1 without one."""
    out = []
    for rollout in rollouts:
        at = rollout.text.find(opening)
        found = laid_on_sampled(rollout.ids, rollout.text, ((at + 1, 0.0),), tokenizer) if at >= 0 else ((-1, 0.0),)
        out.append(found[0][0])
    return torch.tensor(out, dtype=torch.long)


def signature(text: str, kind: Literal["last_number", "last_line", "text"]) -> str:
    """What two answers have to share to count as the same; without a number, last_number takes the last line."""
    words = " ".join(text.lower().split())
    if kind == "text":
        return words
    if kind == "last_number" and (numbers := NUMBER.findall(text)):
        return numbers[-1].replace(",", "")
    lines = [line for line in text.splitlines() if line.strip()]
    return " ".join(lines[-1].lower().split()) if lines else ""


def embedding(text: str) -> Tensor:
    """A unit vector [DIMENSIONS] of the text's hashed character n-grams; the first axis for an empty text."""
    out = torch.zeros(DIMENSIONS)
    words = f" {' '.join(text.lower().split())} "
    for i in range(max(len(words) - NGRAM + 1, 1) if words.strip() else 0):
        out[hashed(words[i : i + NGRAM]) % DIMENSIONS] += 1
    norm = float(out.norm())
    if math.isclose(norm, 0.0):
        out[0] = norm = 1.0
    return out / norm


def hashed(text: str) -> int:
    """A number of 62 bits, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()) >> 2


def features(rollouts: Sequence[Rollout], width: int, wants: set[str], data: Any, tokenizer: Any) -> dict[str, Tensor]:
    """Those of the arrays above that are wanted. data: the recipe's section, which says what to look for."""
    text: dict[str, Callable[[], Tensor]] = {
        "block_ids": lambda: block_array(rollouts, width, data.blocks, tokenizer),
        "strata": lambda: calls(rollouts, data.tool_call),
        "first_calls": lambda: first_calls(rollouts, data.tool_call, tokenizer),
        "signatures": lambda: torch.tensor(
            [hashed(signature(r.text, data.signature)) for r in rollouts], dtype=torch.long
        ),
        "embeddings": lambda: (
            torch.stack([embedding(r.text) for r in rollouts]) if rollouts else torch.zeros(0, DIMENSIONS)
        ),
    }
    out = {name: make() for name, make in text.items() if name in wants}
    if wants & {"step_ids", "step_hashes"}:
        out |= step_arrays(rollouts, width, data.step_tag, tokenizer)
    return out
