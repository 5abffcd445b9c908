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
from torch.nn.functional import pad

from llmrl.types import Sample


class Array(NamedTuple):
    """One word of the vocabulary: its shape, who makes it, what it means."""

    shape: str
    source: str  # rollout | score | old | ref | current | a stage's name | derived
    meaning: str

    @property
    def over_positions(self) -> bool:
        return self.shape.startswith("BT")


VOCABULARY: dict[str, Array] = {
    "loss_mask": Array("BT bool", "rollout", "response tokens that are trained on; True counts"),
    "weights": Array(
        "BT",
        "shaping",
        "multiplies a policy loss on the token and leaves the divisor alone; no critic's, no regularizer",
    ),
    "logprobs": Array("BT", "current", "current policy, with gradient"),
    "entropy": Array("BT", "current", "entropy of the next-token distribution in nats, with gradient"),
    "values": Array("BT", "current", "critic's value of the state before the token, with gradient"),
    "scores": Array("BT", "current", "reward model's score of the state after the token, with gradient"),
    "old_logprobs": Array("BT", "old", "the trainer's own as this batch's updates began"),
    "old_entropy": Array("BT", "old", "entropy as this batch's updates began"),
    "old_values": Array("BT", "old", "critic as this batch's updates began"),
    "old_expected_values": Array("BT", "old", "expected_values as this batch's updates began"),
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
    "tokens": Array("BT int", "rollout", "ids of the response's tokens"),
    "old_kl": Array("BT", "current", "KL(policy as the updates began || current) over the vocabulary, with gradient"),
    "ref_kl": Array("BT", "current", "KL(current || reference) over the vocabulary, with gradient"),
    "action_values": Array("BT", "current", "critic's value of the token taken, with gradient"),
    "expected_values": Array("BT", "current", "mean of the critic's token values under the policy, detached"),
    "expected_advantages": Array("BT", "current", "mean over tokens of pi · detached advantage, gradient through pi"),
    "greedy_rewards": Array("B", "combine", "reward of the greedy answer to the same prompt, which is not trained on"),
    "anchor_rewards": Array(
        "B", "rollout", "mean reward of the reference policy's rollouts of this prompt, made before"
    ),
    "staleness": Array(
        "B int", "rollout", "steps of training between the weights that wrote the rollout and those trained"
    ),
    "step_ids": Array("BT int", "rollout", "turn or reasoning step, counted from 0; -1 outside"),
    "step_hashes": Array("BT int", "rollout", "hash of what the token's step says, up to case and blanks; -1 outside"),
    "block_ids": Array("BT int", "rollout", "named segment of data.blocks, counted from 0; -1 outside"),
    "strata": Array("B int", "rollout", "structural class: how often data.tool_call stands in the answer"),
    "first_calls": Array("B int", "rollout", "position of the first token of the first data.tool_call; -1 without one"),
    "signatures": Array("B int", "rollout", "equal for answers that say the same in the end; see data.signature"),
    "embeddings": Array("BD", "rollout", "unit vectors of the answers' texts, hashed character n-grams"),
    "domains": Array("B int", "rollout", "the row's column `domain`, a number from 0; 0 without"),
    "entropy_scores": Array("BT", "prepare", "log-entropy about its quantile, scaled to [-1, 1] over the mini-batch"),
    "penalised": Array("BT bool", "prepare", "tokens that a covariance penalty acts on"),
    "probe": Array("B bool", "rollout", "a greedy answer sampled for its reward alone"),
    "progress": Array("", "loop", "share of the stage's steps done, 0 to 1"),
    "step_number": Array("", "loop", "steps of the stage done"),
    "seq_logprobs": Array("B", "derived", "sum of logprobs over loss_mask"),
    "old_seq_logprobs": Array("B", "derived", "sum of old_logprobs over loss_mask"),
    "ref_seq_logprobs": Array("B", "derived", "sum of ref_logprobs over loss_mask"),
    "end_scores": Array("B", "derived", "scores at the last counted token"),
}
PAIR_PREFIXES = ("chosen_", "rejected_")
WITH_GRADIENT = frozenset(
    "logprobs entropy values scores old_kl ref_kl action_values expected_advantages seq_logprobs end_scores".split()
)
DERIVED = {
    "seq_logprobs": ("logprobs", "loss_mask"),
    "old_seq_logprobs": ("old_logprobs", "loss_mask"),
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

    values: [B,T] for unit 'token', [B] for 'sequence', [P] for 'pair'; [B] for 'group', whose rows' sum over a prompt
    is the prompt's loss: divided by the number of prompts. stats: tensors of the same shape (or of the
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
    `constants` are arrays without a row dimension; `stored` are other policies' states of the rows, by pass.
    """

    samples: list[Sample]
    arrays: dict[str, Tensor] = field(default_factory=dict)
    pairs: Tensor | None = None
    constants: dict[str, Tensor] = field(default_factory=dict)
    stored: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def counted(self) -> Tensor:
        """[B] int: the tokens of each row that the loss counts; `lengths` is what the policy wrote, counted or not."""
        return self.arrays["loss_mask"].sum(1)

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
        stored = {k: v.take(rows) for k, v in self.stored.items()}
        return Batch([self.samples[i] for i in rows], arrays, pairs, self.constants, stored)

    def write(self, arrays: dict[str, Tensor]) -> None:
        """Take over what a part gives: `weights` are multiplied, `loss_mask` counts where both do, others replace."""
        for name, array in arrays.items():
            if name == "weights":
                self.arrays["weights"] = self.arrays["weights"] * (array if array.dim() == 2 else array[:, None])
            elif name == "loss_mask":
                self.arrays["loss_mask"] = self.arrays["loss_mask"] & array
            elif name == "advantages":
                self.arrays[name] = torch.where(self.arrays["loss_mask"], array, torch.zeros_like(array))
            else:
                self.arrays[name] = array


def joined(batches: list[Batch]) -> Batch:
    """The rows of several batches, one after the other; arrays over positions are padded to one width."""
    if len(batches) == 1:
        return batches[0]
    width = max(b.arrays["loss_mask"].shape[1] for b in batches)
    filled = [b for b in batches if len(b)] or batches[:1]  # one without rows may lack arrays

    def wide(name: str, array: Tensor) -> Tensor:
        return (
            pad(array, (0, width - array.shape[1])) if name in VOCABULARY and VOCABULARY[name].over_positions else array
        )

    arrays = {name: torch.cat([wide(name, b.arrays[name]) for b in filled]) for name in filled[0].arrays}
    starts = [sum(len(b) for b in filled[:i]) for i in range(len(filled))]
    pairs = [b.pairs + start for b, start in zip(filled, starts, strict=True) if b.pairs is not None]
    samples = [s for b in filled for s in b.samples]
    return Batch(samples, arrays, torch.cat(pairs) if pairs else None, filled[0].constants)


def call(part: Any, batch: Batch, state: Any = None) -> Any:
    """Call a part with the arrays its positional parameters name; one with memory gets its state first."""
    from llmrl.catalog import inputs_of

    arrays = [batch.read(name) for name in inputs_of(part)]
    return part.apply(state, *arrays) if hasattr(part, "apply") else part(*arrays)
