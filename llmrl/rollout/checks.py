"""What both ways to vLLM check: that it can do what is asked, that it did it, that it holds the policy's weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from llmrl.errors import RolloutError
from llmrl.rollout.engine import Context, Weights
from llmrl.types import Prompt, Rollout, Sampling

PROBE_TOLERANCE = {"fp32": 1e-3, "bf16": 0.3}  # mean |log-prob difference|; 1e-6 and 0.03 are what healthy models show
MIN_TEMPERATURE = 0.01  # vLLM raises lower ones to this without telling


def refuse_impossible(prompts: Sequence[Prompt], sampling: Sampling, max_model_len: int) -> None:
    """Raise RolloutError for what vLLM would change in silence or has no room for."""
    if 0 < sampling.temperature < MIN_TEMPERATURE:
        raise RolloutError(
            f"temperature {sampling.temperature} would be raised to {MIN_TEMPERATURE} by vLLM. "
            f"Use 0 (greedy) or at least {MIN_TEMPERATURE}."
        )
    longest = max_model_len - sampling.max_tokens
    for prompt in prompts:
        if not 0 < len(prompt.ids) <= longest:
            raise RolloutError(
                f"prompt {prompt.id}: {len(prompt.ids)} tokens, expected 1 to {longest} "
                f"({max_model_len} in all, {sampling.max_tokens} for the answer). "
                "Raise data.max_prompt_tokens or rollout.max_tokens."
            )


def spread(seed: int) -> int:
    """A seed far from those of its neighbours: vLLM gives sample i of a request seed + i."""
    return seed * 0x9E3779B97F4A7C15 % 2**62


def checked(
    name: str, ids: tuple[int, ...], logprobs: tuple[float, ...], reason: str, stop_ids: Sequence[int], version: int
) -> Rollout:
    """One Rollout out of what vLLM said of it; `reason`: why it ended. Raises RolloutError."""
    if len(ids) != len(logprobs):
        raise RolloutError(f"prompt {name}: vLLM returned {len(ids)} tokens but {len(logprobs)} log-probs.")
    if not all(math.isfinite(value) for value in logprobs):
        raise RolloutError(f"prompt {name}: vLLM returned log-probs that are not finite. Have the weights diverged?")
    truncated = reason == "length"
    if reason not in ("stop", "length") or not ids or truncated == (ids[-1] in stop_ids):
        raise RolloutError(
            f"prompt {name}: vLLM ended an answer of {len(ids)} tokens by {reason!r} on {ids[-1:]}, "
            f"expected 'length' or one of the stop tokens {tuple(stop_ids)}."
        )
    return Rollout(ids=ids, text="", logprobs=logprobs, truncated=truncated, version=version)


def probe_ids(context: Context) -> tuple[int, ...]:
    """A prompt of few tokens for comparing engine and policy; it means nothing."""
    vocabulary, length = len(context.tokenizer), min(8, context.max_prompt_tokens)
    return tuple((37 * i + 11) % vocabulary for i in range(length))


@torch.no_grad()
def next_logprobs(policy: Weights, ids: Sequence[int], context: Context, temperature: float = 1.0) -> Tensor:
    """[T,V] fp32 on the CPU: the policy's own log-probabilities of what follows each of the tokens."""
    model, was_training = policy.model, policy.model.training
    model.eval()
    row = torch.tensor([list(ids)], device=next(model.parameters()).device)
    with policy.whole(), torch.autocast(row.device.type, torch.bfloat16, enabled=context.precision == "bf16"):
        logits = model(row).logits[0].float()
    model.train(was_training)
    return (logits / temperature).log_softmax(-1).cpu()


def refuse_gap(expected: Tensor, found: Sequence[float], architecture: str, precision: str) -> None:
    """Raise RolloutError unless the engine's log-probabilities are the policy's of the same tokens."""
    gap = (expected - torch.tensor(found)).abs().mean().item()
    if not gap <= PROBE_TOLERANCE[precision]:
        raise RolloutError(
            f"after the weight sync vLLM's log-probabilities are {gap:.3g} away from the policy's in the mean, "
            f"expected at most {PROBE_TOLERANCE[precision]}: some weights did not arrive, or vLLM "
            f"computes {architecture} differently. Check that named_weights() yields every weight "
            "(lm_head.weight too), or use rollout.engine: transformers."
        )
