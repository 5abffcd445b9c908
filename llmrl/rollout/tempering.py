"""vLLM's part in per-token temperatures: a logits processor that divides by them and keeps which they were."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from llmrl.errors import RolloutError
from llmrl.types import Rollout

REQUEST = "llmrl_request"  # in SamplingParams.extra_args: the number of the request in its call
Sample = tuple[int, int]  # (number of the request, seed of the sample)
Found = dict[int, tuple[float, float]]  # position in the answer -> (temperature, entropy)


class Tempering:
    """What the processor does in one call of the engine, and what it has done."""

    def __init__(self) -> None:
        self.per_token: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
        self.steps: list[tuple[list[tuple[Sample, int]], Tensor]] = []

    def begin(self, per_token: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        self.per_token, self.steps = per_token, []

    def divide(self, logits: Tensor, places: list[tuple[Sample, int]]) -> Tensor:
        """Logits [n,V] over the temperatures they call for, in place; places: (sample, position) of each row."""
        temperatures, entropies = self.per_token(logits)
        self.steps.append((places, torch.stack([temperatures, entropies])))  # on the device: no step waits for a copy
        return logits.div_(temperatures[:, None])

    def end(self) -> dict[Sample, Found]:
        """What was done for each sample, which is then forgotten here.

        Of a prompt that is read in pieces vLLM draws a token after each and drops all but the last: so does this.
        """
        found: dict[Sample, Found] = {}
        if self.steps:
            numbers = torch.cat([step for _, step in self.steps], 1).tolist()
            places = [place for step, _ in self.steps for place in step]
            for (sample, position), temperature, entropy in zip(places, *numbers, strict=True):
                found.setdefault(sample, {})[position] = (temperature, entropy)
        self.per_token, self.steps = None, []
        return found


def processor(tempering: Tempering) -> type:
    """The class to register with an engine. It runs behind vLLM's own temperature, which has to be 1."""
    from vllm.v1.sample.logits_processor import LogitsProcessor
    from vllm.v1.sample.logits_processor.builtin import process_dict_updates

    class PerTokenTemperature(LogitsProcessor):
        def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool):
            self.requests: dict[
                int, tuple[Sample, list[int]]
            ] = {}  # row of vLLM's batch -> (sample, its tokens so far)

        def is_argmax_invariant(self) -> bool:
            return True

        def update_state(self, batch_update: Any) -> None:
            process_dict_updates(self.requests, batch_update, _request)

        def apply(self, logits: Tensor) -> Tensor:
            if not self.requests:
                return logits
            rows = [self.requests[row] for row in range(len(logits))]  # a call samples all its requests alike
            return tempering.divide(logits, [(sample, len(tokens)) for sample, tokens in rows])

    return PerTokenTemperature


def _request(params: Any, prompt: list[int] | None, tokens: list[int]) -> tuple[Sample, list[int]] | None:
    number = (params.extra_args or {}).get(REQUEST)
    return None if number is None else ((number, params.seed), tokens)


def tempered(rollout: Rollout, found: Found, name: str) -> Rollout:
    """The rollout with the temperatures and entropies of its tokens. RolloutError when one of them is not known."""
    if missing := [t for t in range(len(rollout.ids)) if t not in found]:
        raise RolloutError(
            f"prompt {name}: vLLM drew token {missing[0]} of an answer without the temperature asked for. "
            "Use rollout.engine: transformers."
        )
    temperatures, entropies = zip(*(found[t] for t in range(len(rollout.ids))), strict=True)
    return replace(rollout, temperatures=temperatures, entropies=entropies)
