"""What every rollout engine does: token ids in, token ids and log-probabilities out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from llmrl.types import Prompt, Rollout, Sampling

# told of the prompts that have all their rollouts, by their place in the call
Finished = Callable[[dict[int, list[Rollout]]], None]


class Weights(Protocol):
    """What an engine sees of the policy in training."""

    model: Any  # the transformers (or peft) module
    path: str  # a folder or hub id with the model's config and tokenizer

    def whole(self) -> AbstractContextManager:
        """Inside, this process has every weight of `model`. Where weights are spread over processes, all have to enter."""

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight under its transformers name: adapters merged in, lm_head.weight there even when it is tied."""

    def trained_names(self) -> set[str]:
        """The names, of those of `named_weights`, whose weights training changes; the others never differ from before."""


@dataclass(frozen=True)
class Context:
    """What an engine is built from; its recipe options are keyword-only parameters of its `__init__`."""

    policy: Weights
    tokenizer: Any
    stop_ids: tuple[int, ...]  # any of them ends an answer
    max_prompt_tokens: int
    max_tokens: int
    precision: str = "fp32"
    per_token: bool = False  # whether a sampling may set the temperature token by token


class Engine(Protocol):
    """Built as `EngineClass(context, **options)`. Rollouts carry the version of the weights that wrote them.

    A class with `own_weights = True` samples by what the last sync gave it, whatever becomes of the policy meanwhile; then
    `generate` may be called in a thread while the policy trains, one call at a time and none during a sync. in_step: name of
    an option beyond 1 of which the processes of a run sample together, which rules that out.
    """

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        num_samples: int,
        seeds: Sequence[int],
        finished: Finished | None = None,
    ) -> list[list[Rollout]]:
        """`num_samples` rollouts of each prompt, in the order given.

        A prompt is sampled from `prompt.ids`; sample i of prompt p depends on (weights, ids, sampling, seeds[p], i)
        alone, not on what else is in the call, as far as the engine's arithmetic allows. `ids` of a rollout end with
        the stop token that ended it, or `truncated` is True. `text` is left empty: the caller decodes. Under
        `sampling.per_token` they carry the temperature of each token and the entropy it was set by; engines that do not
        sample from logits leave both None.
        finished: called while others are still being written, in the caller's thread, every few tokens: with the
        prompts that were finished since, often none, so that the caller can do a little work of its own. An engine need
        not tell of every prompt, nor of any.
        Raises RolloutError when the engine answers with something else than was asked for.
        """

    def sync(self, policy: Weights, version: int) -> None:
        """Load the policy's weights; the next rollouts are written by them and carry `version`."""

    def measured(self) -> dict[str, float]:
        """What befell it since it was asked last, by metric name; the numbers of all processes are added up. An engine with
        nothing to tell need not have it.
        """

    def close(self) -> None:
        """Give back processes and memory."""
