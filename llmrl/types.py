"""The nouns of a step: Prompt → Rollout → Score, siblings in a Group, one training row in a Sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

Message = dict[str, str]


@dataclass(frozen=True)
class Completion:
    """A stored answer to a prompt: a demonstration, one side of a pair, or a rollout kept from earlier.

    Either `messages` (the assistant's turn) or `text` is set. `label` says what the data says of it: 'chosen',
    'rejected', or None for a demonstration. `feedback` and `score` come with feedback data, `steps` with step labels:
    (characters of `text` up to the end of a step, its label).
    """

    text: str
    messages: tuple[Message, ...] | None = None
    label: str | None = None
    feedback: str | None = None
    score: float | None = None
    steps: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Prompt:
    """What the model is asked. Exactly one of `messages` (rendered by the chat template) and `text` (as it is) is set.

    id: stable over runs, the hash of the row. ids: the tokens to sample from, filled in by `llmrl.data.render`.
    reference: what scorers compare with. columns: every other column of the row, passed on to scorers.
    feedback: the condition that is written into the prompt (feedback-conditioned training), or None.
    completions: stored answers, for offline training.
    """

    id: str
    messages: tuple[Message, ...] | None = None
    text: str | None = None
    ids: tuple[int, ...] = ()
    reference: Any = None
    columns: dict[str, Any] = field(default_factory=dict)
    feedback: str | None = None
    completions: tuple[Completion, ...] = ()

    def question(self) -> str:
        """The text of the last user turn, or the raw text."""
        if self.messages is None:
            return self.text or ""
        return next((m["content"] for m in reversed(self.messages) if m["role"] == "user"), "")

    def conditioned(self, feedback: str | None) -> Prompt:
        """The same prompt under another condition; its ids have to be rendered again."""
        return replace(self, feedback=feedback, ids=())


@dataclass(frozen=True)
class Sampling:
    """Every sampling parameter, always passed explicitly, so that no hidden default of a model applies.

    temperature 0 is greedy. top_k 0 and top_p 1 switch truncation off.
    Reported log-probabilities are those of the distribution sampled from (after temperature and truncation);
    greedy reports them at temperature 1.
    per_token: sets the temperature of each token in place of `temperature`, which it knows. It is called with the
    untempered logits [n,V] in fp32 and gives (temperatures [n], entropies [n] before them); never when greedy.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    per_token: Callable[[Any], tuple[Any, Any]] | None = None

    @property
    def varies(self) -> bool:
        """Whether tokens are drawn at temperatures of their own."""
        return self.per_token is not None and self.temperature > 0


@dataclass(frozen=True)
class Rollout:
    """One answer, token-exact. `ids` ends with the end-of-turn token unless it was cut by the limit.

    logprobs: natural, one a token, as the engine reported them; None when nothing was sampled (replayed data).
    loss_mask: which of `ids` are trained on; None means all. version: of the weights that wrote it.
    label: 'chosen', 'rejected' or None, from stored data. stored: the Completion it was replayed from. step_labels: its
    step labels as (position among `ids`, label), those beyond a cut left out. temperatures, entropies: one a token, when
    `Sampling.per_token` set them; the entropy in nats of what the token was drawn from, before the temperature. probe: a
    greedy answer that is sampled for its reward alone and never trained on.
    """

    ids: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...] | None = None
    truncated: bool = False
    version: int = 0
    loss_mask: tuple[bool, ...] | None = None
    stored: Completion | None = None
    step_labels: tuple[tuple[int, float], ...] = ()
    temperatures: tuple[float, ...] | None = None
    entropies: tuple[float, ...] | None = None
    probe: bool = False


@dataclass(frozen=True)
class Score:
    """What one scorer says of one rollout. value None means 'does not apply'; error means it could not be judged.

    An error is never a zero: the rollout is dropped, counted and logged. evidence is plain data for the record.
    steps: process rewards, each as (characters of the rollout's text up to the end of the step, its value).
    """

    value: float | None
    feedback: str | None = None
    evidence: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    steps: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Group:
    """The rollouts of one prompt. `scores[i][name]` belongs to `rollouts[i]`."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    scores: tuple[dict[str, Score], ...] = ()


@dataclass(frozen=True)
class Sample:
    """One training row: the context trained under, the response, and what it was sampled under.

    training: ids of the context for the loss. sampled: ids of the context that was sampled from (monitors).
    """

    training: tuple[int, ...]
    sampled: tuple[int, ...]
    response: tuple[int, ...]
    loss_mask: tuple[bool, ...]
