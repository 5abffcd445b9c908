"""What a server's /v1/completions is asked, and what it may answer: token ids and log-probabilities, no text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from llmrl.errors import RolloutError
from llmrl.rollout.checks import checked
from llmrl.types import Rollout, Sampling

LEAST = -9999.0  # vLLM's JSON knows no lower log-probability, and says this for those that are


def request(
    ids: Sequence[int], sampling: Sampling, num_samples: int, seed: int, stop_ids: Sequence[int], salt: str
) -> dict[str, Any]:
    """Every parameter of a request, so that no default of the server's or the model's applies.

    salt: what was computed under another one is not found in the server's prefix cache.
    """
    return {
        "prompt": list(ids),
        "n": num_samples,
        "seed": seed,
        "max_tokens": sampling.max_tokens,
        "min_tokens": 0,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": list(stop_ids),
        "ignore_eos": True,  # the folder's own end tokens count only if they are among stop_ids
        "logprobs": 0,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "cache_salt": salt,
    }


def read_choice(
    name: str, choice: Any, max_tokens: int, vocabulary: int, stop_ids: Sequence[int], version: int
) -> tuple[int, Rollout]:
    """(which of the request's samples, the rollout). RolloutError for anything but a whole answer to prompt `name`."""
    try:
        index, ids, logprobs = choice["index"], tuple(choice["token_ids"]), choice["logprobs"]["token_logprobs"]
        whole = all(type(i) is int for i in (index, *ids)) and all(type(v) in (int, float) for v in logprobs)
    except (TypeError, KeyError):
        whole = False
    if not whole or index < 0:
        raise RolloutError(f"prompt {name}: an answer without index, token_ids and token_logprobs.")
    if not all(0 <= i < vocabulary for i in ids):
        raise RolloutError(f"prompt {name}: an answer with tokens outside the vocabulary of {vocabulary}.")
    logprobs = tuple(v if v > LEAST else -math.inf for v in logprobs)
    rollout = checked(name, ids, logprobs, str(choice.get("finish_reason")), stop_ids, version)
    if len(ids) > max_tokens or (rollout.truncated and len(ids) < max_tokens):
        raise RolloutError(f"prompt {name}: an answer of {len(ids)} tokens under a limit of {max_tokens}.")
    return index, rollout
