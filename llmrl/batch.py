"""The vocabulary of arrays, and the Batch that carries them from stage to stage.

B sequences in the batch, T response positions, K reward components, P pairs. A part asks for an array by naming a
positional parameter after it; nothing else says which passes a recipe needs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llmrl.types import Sample


class Array(NamedTuple):
    """One word of the vocabulary: its shape, who makes it, what it means."""

    shape: str
    source: str  # rollout | score | old | ref | current | a stage's name | derived
    meaning: str


VOCABULARY: dict[str, Array] = {
    "loss_mask": Array("BT bool", "rollout", "response tokens that are trained on; True counts"),
    "weights": Array("BT", "shaping", "multiplies a token's loss and leaves the divisor alone"),
    "logprobs": Array("BT", "current", "current policy, with gradient"),
    "entropy": Array("BT", "current", "entropy of the next-token distribution in nats, with gradient"),
    "values": Array("BT", "current", "critic's value of the state before the token, with gradient"),
    "scores": Array("BT", "current", "reward model's score of the state after the token, with gradient"),
    "old_logprobs": Array("BT", "old", "the trainer's own as this batch's updates began"),
    "old_entropy": Array("BT", "old", "entropy as this batch's updates began"),
    "old_values": Array("BT", "old", "critic as this batch's updates began"),
    "rollout_logprobs": Array("BT", "rollout", "as the engine reported them while sampling"),
    "ref_logprobs": Array("BT", "ref", "frozen reference policy"),
    "temperatures": Array("BT", "rollout", "at which each token was sampled"),
    "rewards": Array("B", "combine", "the combined scalar"),
    "reward_parts": Array("BK", "score", "one column a scorer, before combining"),
    "reward_weights": Array("K", "score", "weight of each scorer in the recipe"),
    "step_rewards": Array("BT", "score", "weighted process rewards of the scorers, each on its step's last token"),
    "token_rewards": Array("BT", "combine", "rewards laid on tokens; holds `rewards` at the last counted token"),
    "advantages": Array("BT", "advantage", "credit of each token"),
    "returns": Array("BT", "advantage", "what the critic is fitted to"),
    "group_ids": Array("B int", "rollout", "rollouts of one prompt share one"),
    "lengths": Array("B int", "rollout", "policy-written tokens"),
    "truncated": Array("B bool", "rollout", "cut by the token limit"),
    "margins": Array("B", "rollout", "by how much the chosen side is better, from the data; 0 where it says nothing"),
    "step_labels": Array("BT", "rollout", "stored label of the step that ends with the token; NaN where there is none"),
    "seq_logprobs": Array("B", "derived", "sum of logprobs over loss_mask"),
    "ref_seq_logprobs": Array("B", "derived", "sum of ref_logprobs over loss_mask"),
    "end_scores": Array("B", "derived", "scores at the last counted token"),
}
PAIR_PREFIXES = ("chosen_", "rejected_")
WITH_GRADIENT = frozenset({"logprobs", "entropy", "values", "scores", "seq_logprobs", "end_scores"})
DERIVED = {
    "seq_logprobs": ("logprobs", "loss_mask"),
    "ref_seq_logprobs": ("ref_logprobs", "loss_mask"),
    "end_scores": ("scores", "loss_mask"),
}


def base_name(name: str) -> str:
    """The array behind a name: 'chosen_seq_logprobs' -> 'seq_logprobs'. KeyError when it is not in the vocabulary."""
    for prefix in PAIR_PREFIXES:
        if name.startswith(prefix) and name[len(prefix) :] in VOCABULARY:
            return name[len(prefix) :]
    if name in VOCABULARY:
        return name
    raise KeyError(name)


def sources(names: Iterable[str]) -> set[str]:
    """The arrays that have to be made before `names` can be read: derived ones are followed to what they need."""
    found: set[str] = set()
    for name in names:
        base = base_name(name)
        found |= sources(DERIVED[base]) if base in DERIVED else {base}
    return found


@dataclass(frozen=True)
class Loss:
    """What an objective or a regularizer returns: one number a token, sequence or pair, never a mean.

    values: [B,T] for unit 'token', [B] for 'sequence', [P] for 'pair'. stats: tensors of the same shape (or of the
    token shape), averaged over what counts and logged under their name.
    """

    values: Tensor
    unit: str = "token"
    stats: dict[str, Tensor] = field(default_factory=dict)


class Credit(NamedTuple):
    """What a critic-based advantage estimator returns."""

    advantages: Tensor
    returns: Tensor


@dataclass
class Batch:
    """Rows in training and their named arrays. `arrays[name]` has the rows' order; `pairs` holds row indices [P,2];
    `constants` are arrays without a row dimension.
    """

    samples: list[Sample]
    arrays: dict[str, Tensor] = field(default_factory=dict)
    pairs: Tensor | None = None
    constants: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, name: str) -> Tensor:
        """The array of that name, derived or seen through the pairs where the name says so.

        Raises KeyError when nothing has made it, which the trainer rules out before anything runs.
        """
        base = base_name(name)
        if base in self.constants:
            return self.constants[base]
        if base in self.arrays:
            array = self.arrays[base]
        else:
            source, mask = (self.arrays[part] for part in DERIVED[base])
            if base == "end_scores":  # of a sum over the last counted token alone
                mask = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
            array = torch.where(mask, source, 0.0).sum(-1)
        if name == base:
            return array
        if self.pairs is None:
            raise KeyError(f"{name}: this batch has no pairs")
        return array[self.pairs[:, 0 if name.startswith("chosen_") else 1]]

    def take(self, rows: list[int]) -> Batch:
        """The rows given, in that order; pairs with both sides among them are kept."""
        index = torch.tensor(rows, dtype=torch.long)
        pairs = None
        if self.pairs is not None:
            place = {row: i for i, row in enumerate(rows)}
            kept = [[place[a], place[b]] for a, b in self.pairs.tolist() if a in place and b in place]
            pairs = torch.tensor(kept, dtype=torch.long).reshape(-1, 2)
        arrays = {k: v[index] for k, v in self.arrays.items()}
        return Batch([self.samples[i] for i in rows], arrays, pairs, self.constants)


def call(part: Any, batch: Batch) -> Any:
    """Call a part with the arrays its positional parameters name."""
    from llmrl.catalog import inputs_of

    return part(*(batch.read(name) for name in inputs_of(part)))
