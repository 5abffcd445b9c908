"""What is learnt from answers that somebody else wrote: imitation, experts where the policy fails, critics, feedback."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.lab.finding import Finding, found
from benchmarks.lab.tasks import Task, t1, toy_a
from benchmarks.lab.trainer import Lab, changed
from llmrl.algorithm import Extra
from llmrl.batch import Batch
from llmrl.composition import build


def right_answers(task: Task) -> Tensor:
    """[prompts, T]: the first answer to each prompt that earns 1."""
    prompts, tokens = task.answers()
    right = task.reward(prompts, tokens) == 1
    return torch.stack([tokens[right & (prompts == p)][0] for p in range(task.prompts)])


def sft(seeds: int) -> Finding:
    ends = []
    for seed in range(seeds):
        task, logits = toy_a(seed)
        expert = right_answers(task)
        lab = Lab(task, logits, build({"name": "sft", "minibatches": 1}), rate=3.0, seed=seed)
        lab.sampled = lambda sampler, prompts, expert=expert: expert[prompts]
        ends.append(lab.run(200).reward[-1])
    return found("sft", "success after 200 steps on demonstrations (TOY-A, start 0.07)", ends, above=0.9)


def ahpo(seeds: int) -> Finding:
    gains = []
    for seed in range(seeds):
        ends = []
        for name in ("ahpo", "grpo"):
            task, logits = toy_a(seed, success=0.0016)
            lab = Lab(task, logits, build({"name": name}), rate=3.0, seed=seed)
            expert = lab.described(torch.arange(4), right_answers(task), logits)
            lab.rows = lambda extra, batch, expert=expert: Batch(
                expert.samples, dict(expert.arrays), None, expert.constants
            )
            ends.append(lab.run(60).reward[-1])
        gains.append(ends[0] - ends[1])
    what = "success after 60 batches less GRPO's, which finds no right answer (TOY-A, start 0.0016, an expert's answer each)"
    return found("ahpo", what, gains, above=0.5)


def chain(depth: int = 8, symbols: int = 4) -> Task:
    """The right symbol in every place earns 1 at the end; one wrong symbol leads off the chain for good."""

    def reward(prompts: Tensor, tokens: Tensor) -> Tensor:
        return (tokens == 0).all(1).float()

    def state(prompts: Tensor, tokens: Tensor) -> Tensor:
        return torch.where((tokens == 0).all(1), tokens.shape[1], depth)

    return Task(1, depth, symbols, reward, state)


def hnpg(seeds: int) -> Finding:
    """The expert's answer teaches the critic; the policy learns at its prefixes from what the critic thinks of its own."""
    ends, alone, task = [], [], chain()
    for seed in range(seeds):
        for coefficient, kept in ((1.0, ends), (0.0, alone)):
            method = build({"name": "hnpg", "offline_coef": coefficient})
            lab = Lab(task, torch.zeros(9, 4), method, rate=2.0, seed=seed, group_size=16)

            def expert(extra: Extra, batch: Batch, lab: Lab = lab) -> Batch:
                prompts, tokens = torch.zeros(8, dtype=torch.long), torch.zeros(8, task.length, dtype=torch.long)
                rows = lab.described(prompts, tokens, lab.ref)
                earned = torch.zeros(8, task.length)
                earned[:, -1] = 1.0
                rows.arrays["token_rewards"] = earned
                return rows

            lab.rows = expert
            lab.run(300)
            kept.append(float(lab.table.chances[:8, 0].prod()))
    also = (f"without them at most 0.05 (greatest {max(alone):.3f})", max(alone) <= 0.05)
    what = "success after 300 batches with an expert's prefixes (chain of 8 symbols, start 0.00002)"
    return found("hnpg", what, ends, above=0.5, also=also)


def fcp(seeds: int) -> Finding:
    """Answers of the first policy, imitated under the feedback that they earned: a row of the table for either feedback."""
    gaps = []
    for seed in range(seeds):
        base, logits = t1(seed)
        task = Task(16, 1, 16, lambda prompts, tokens, base=base: base.reward(prompts // 2, tokens))
        method = changed(build({"name": "fcp", "stage": "offline"}), select=(), condition=None)
        first = Lab(base, logits, method, rate=0.0, seed=seed)
        lab = Lab(task, logits.repeat_interleave(2, 0), method, rate=8.0, seed=seed)

        def told(first=first, lab=lab, base=base) -> Batch:
            asked = torch.arange(8).repeat_interleave(16)
            tokens = first.sampled(first.ref, asked)
            return lab.described(2 * asked + base.reward(asked, tokens).long(), tokens, lab.table.logits.detach())

        lab.collect = told
        lab.run(100)
        right = lab.table.chances[:, :4].sum(1)
        gaps.append(float(right[1::2].mean() - right[0::2].mean()))
    what = "success when told 'right' less success when told 'wrong', after 100 batches of offline training (T1)"
    return found("fcp", what, gaps, above=0.5)
