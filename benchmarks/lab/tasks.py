"""Tasks on a table of logits, one row a state: what is asked, what earns a reward, and the worlds that several checks share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

State = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Task:
    """`prompts` questions, each answered by `length` symbols out of `symbols`.

    reward: (prompts [N], tokens [N,T]) -> [N], or [N,K] for several. state: (prompts [N], tokens so far [N,t]) -> [N], the
    row of the table that the next symbol is drawn from; None: a row for each prompt and position. describe: (prompts,
    tokens) -> further arrays of the vocabulary, such as `loss_mask`, `strata` or `step_ids`.
    """

    prompts: int
    length: int
    symbols: int
    reward: Callable[[Tensor, Tensor], Tensor]
    state: State | None = None
    describe: Callable[[Tensor, Tensor], dict[str, Tensor]] | None = None

    def states(self, prompts: Tensor, tokens: Tensor) -> Tensor:
        """[N,T]: the row that each symbol was drawn from."""
        if self.state is None:
            return prompts[:, None] * self.length + torch.arange(tokens.shape[1])
        return torch.stack([self.state(prompts, tokens[:, :t]) for t in range(tokens.shape[1])], 1)

    def answers(self) -> tuple[Tensor, Tensor]:
        """(prompts, tokens) of every answer to every prompt."""
        each = torch.tensor(list(product(range(self.symbols), repeat=self.length)))
        prompts = torch.arange(self.prompts).repeat_interleave(len(each))
        return prompts, each.repeat(self.prompts, 1)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def toy_a(seed: int, success: float = 0.07) -> tuple[Task, Tensor]:
    """Four prompts, three symbols out of five, two accepted strings a prompt that differ in every place.

    The logits of their symbols are raised alike, until the share of right answers is `success` on the average.
    """
    generator = seeded(seed)
    draws = [[torch.randperm(5, generator=generator)[:2] for _ in range(3)] for _ in range(4)]
    accepted = torch.stack([torch.stack(draw, 1) for draw in draws])  # [prompt, string, place]

    def reward(prompts: Tensor, tokens: Tensor) -> Tensor:
        return (tokens[:, None] == accepted[prompts]).all(2).any(1).float()

    # each of the two strings has probability p³ where both symbols of a place have probability p
    p = (success / 2) ** (1 / 3)
    raised = torch.tensor(3 * p / (1 - 2 * p)).log()
    logits = torch.zeros(4, 3, 5)
    for string in range(2):
        logits.scatter_(2, accepted[:, string, :, None], float(raised))
    return Task(4, 3, 5, reward), logits.reshape(12, 5)


def t1(seed: int) -> tuple[Task, Tensor]:
    """Eight prompts, sixteen one-symbol answers of which the first four are right; logits from N(0, 0.7²)."""
    task = Task(8, 1, 16, lambda prompts, tokens: (tokens[:, 0] < 4).float(), describe=answers_told_apart)
    return task, 0.7 * torch.randn(8, 16, generator=seeded(seed))


def answers_told_apart(prompts: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """What says which answers are the same, where the answer is its last symbol."""
    return {"signatures": tokens[:, -1], "embeddings": torch.eye(64)[tokens[:, -1]]}


def bandit(rewards: Tensor) -> tuple[Task, Tensor]:
    """One prompt whose arms have the rewards given; logits 0."""
    return Task(1, 1, len(rewards), lambda prompts, tokens: rewards[tokens[:, 0]]), torch.zeros(1, len(rewards))


def coin(seed: int) -> Callable[[int], Tensor]:
    """Chance outside the policy: a draw for each rollout."""
    generator = seeded(10_000 + seed)
    return lambda count: torch.rand(count, generator=generator)
