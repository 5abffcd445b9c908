"""Credit by what an answer looks like: lengths, halves, strata, steps, blocks, calls, anchors."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.lab.finding import Finding, found
from benchmarks.lab.gradients import cosine, estimates
from benchmarks.lab.tasks import Task, coin, seeded, t1
from benchmarks.lab.trainer import Lab, changed
from llmrl.batch import call
from llmrl.composition import build


def short_or_long(chance: Tensor, seed: int) -> Task:
    """A symbol that says whether another follows; right with chance[prompt, short or long], whatever the policy does else."""
    draw = coin(seed)

    def reward(prompts: Tensor, tokens: Tensor) -> Tensor:
        return (draw(len(prompts)) < chance[prompts, tokens[:, 0]]).float()

    def describe(prompts: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        return {"loss_mask": torch.stack([torch.ones_like(prompts), tokens[:, 0]], 1).bool()}

    return Task(len(chance), 2, 2, reward, describe=describe)


def share_of_long(task: Task, lab: Lab) -> float:
    return float(lab.table.chances[:: task.length, 1].mean())


def canon(seeds: int) -> Finding:
    """Long answers are right in 6 of 10, short ones in 4 of 10; between halves that shows more than among all."""
    gains, inside = [], []
    for seed in range(seeds):
        ends = []
        for options in (
            {"name": "canon", "metric": "length"},
            {"name": "dr_grpo"},
            {"name": "canon", "metric": "length", "mu": 0.0},
        ):
            task = short_or_long(torch.tensor([[0.4, 0.6]]).repeat(16, 1), seed)
            lab = Lab(task, torch.zeros(32, 2), build(options), rate=24.0, seed=seed)
            lab.run(10)
            ends.append(share_of_long(task, lab))
        gains.append(ends[0] - ends[1])
        inside.append(ends[1] - ends[2])
    also = ("Dr.GRPO's above mu = 0", sum(inside) > 0)
    what = "chance of a long answer after 10 batches with mu = 1, less Dr.GRPO's (right 0.6 if long, 0.4 if short)"
    return found("canon", what, gains, above=0, also=also)


def adora(seeds: int) -> Finding:
    """On half of the prompts the long answers are the better ones, on the others the short ones."""
    gains, right = [], []
    for seed in range(seeds):
        chance = torch.tensor([[0.3, 0.7], [0.7, 0.3]]).repeat(8, 1)
        ends, earned = [], []
        for name in ("adora", "grpo"):
            # one row for every prompt: what is learnt on one is done on all
            task = short_or_long(chance, seed)
            shared = Task(16, 2, 2, task.reward, lambda prompts, tokens: prompts * 0 + tokens.shape[1], task.describe)
            lab = Lab(shared, torch.zeros(2, 2), build({"name": name}), rate=0.3, seed=seed)
            rewards = [float(lab.step().arrays["rewards"].mean()) for _ in range(60)]
            ends.append(float(lab.table.chances[0][1]))
            earned.append(sum(rewards[-20:]) / 20)
        gains.append(ends[0] - ends[1])
        right.append(earned[0] - earned[1])
    also = (f"accuracy not lower by 0.03 (mean {sum(right) / seeds:+.3f})", sum(right) / seeds > -0.03)
    what = "share of long answers after 60 batches, less GRPO's (long is better on half of the prompts, worse on half)"
    return found("adora", what, gains, above=0, also=also)


def d3s(seeds: int) -> Finding:
    ratios = []
    for seed in range(seeds):
        needed = []
        for name in ("d3s", "grpo"):
            task, logits = t1(seed)
            history = Lab(task, logits, changed(build({"name": name}), epochs=4), rate=4.0, seed=seed).run(60)
            needed.append(next((i + 1 for i, r in enumerate(history.reward) if r >= 0.9), 60))
        ratios.append(needed[0] / needed[1])
    return found("d3s", "batches until accuracy 0.9 / GRPO's at the same rate (T1)", ratios, below=1)


def aspo(seeds: int) -> Finding:
    """Half of the answers are right, whenever they call the tool; calls only cost time."""
    gains, kept = [], []
    for seed in range(seeds):
        ends, shares = [], []
        for name in ("aspo", "dapo"):
            draw = coin(seed)

            def reward(prompts: Tensor, tokens: Tensor, draw=draw) -> Tensor:
                return (draw(len(prompts)) < torch.where((tokens == 1).any(1), 0.7, 0.3)).float()

            def describe(prompts: Tensor, tokens: Tensor) -> dict[str, Tensor]:
                calls = tokens == 1
                return {"first_calls": torch.where(calls.any(1), calls.int().argmax(1), -1)}

            task = Task(8, 6, 3, reward, describe=describe)
            lab = Lab(task, torch.zeros(48, 3), build({"name": name}), rate=12.0, seed=seed)
            batches = [lab.step() for _ in range(60)]
            calls = torch.cat([b.arrays["first_calls"] for b in batches[-10:] if b is not None])
            ends.append(float(calls[calls >= 0].float().mean()))
            shares.append(float((calls >= 0).float().mean()))
        gains.append(ends[0] - ends[1])
        kept.append(shares[0] - shares[1])
    also = (f"as many call (mean {sum(kept) / seeds:+.3f})", sum(kept) / seeds > -0.03)
    what = (
        "place of the first call in the last 10 of 60 batches, less DAPO's (6 symbols; a call at any place helps alike)"
    )
    return found("aspo", what, gains, below=0, also=also)


def stratified_grpo(seeds: int) -> Finding:
    """One direct answer that earns 0.4 ± 0.1, as probable as sixteen searched ones together, of which one earns 1.

    The search earns less on the average, so GRPO gives it up before it finds the right answer.
    """
    gains, searched = [], []
    for seed in range(seeds):
        ends = []
        for options in ({"name": "stratified_grpo", "alpha": 1.0}, {"name": "grpo"}):
            generator = seeded(seed)

            def reward(prompts: Tensor, tokens: Tensor, generator=generator) -> Tensor:
                direct = 0.4 + 0.1 * torch.randn(len(tokens), generator=generator)
                return torch.where(tokens[:, 0] == 0, direct, (tokens[:, 0] == 1).float())

            task = Task(8, 1, 17, reward, describe=lambda p, t: {"strata": (t[:, 0] > 0).long()})
            logits = torch.zeros(8, 17)
            logits[:, 0] = torch.tensor(16.0).log()
            lab = Lab(task, logits, build(options), rate=4.0, seed=seed)
            lab.run(300)
            ends.append(float((lab.table.chances[:, 0] * 0.4 + lab.table.chances[:, 1]).mean()))
        gains.append(ends[0] - ends[1])
        searched.append(1 - float(lab.table.chances[:, 0].mean()))
    what = (
        "reward after 300 batches with alpha = 1, less GRPO's (search: 1 answer in 16 earns 1; direct answer 0.4; "
        f"GRPO ends with {sum(searched) / seeds:.2f} of search)"
    )
    return found("stratified_grpo", what, gains, above=0)


def salt(seeds: int) -> Finding:
    """A thought that does not matter and a forced action, then the symbol that decides."""

    def describe(prompts: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        hashes = torch.stack([prompts * 0, prompts * 0, 1 + tokens[:, 2]], 1)  # the thought is not part of the step
        return {"step_ids": torch.tensor([0, 0, 1]).expand(tokens.shape), "step_hashes": hashes}

    task = Task(4, 3, 4, lambda prompts, tokens: (tokens[:, 2] == 0).float(), describe=describe)
    logits = torch.zeros(12, 4)
    logits[1::3, 0] = 50.0  # the forced action
    drifts, plain, right = [], [], []
    for seed in range(seeds):
        for name, kept in (("salt", drifts), ("grpo", plain)):
            lab = Lab(task, logits, build({"name": name}), rate=6.0, seed=seed)
            end = lab.run(150).reward[-1]
            kept.append(float(lab.table.logits[0::3].abs().sum(1).mean().detach()))
            right.append(end)
    also = (f"both end right in 0.9 or more (GRPO's drift {sum(plain) / seeds:.2f})", min(right) >= 0.9)
    ratios = [mine / other for mine, other in zip(drifts, plain, strict=True)]
    what = "drift of the logits of a thought that does not matter, after 150 batches / GRPO's"
    return found("salt", what, ratios, below=0.1, also=also)


def pvpo(seeds: int) -> Finding:
    task = Task(6, 1, 8, lambda prompts, tokens: (tokens[:, 0] == 0).float())
    gains, mine = [], []
    for seed in range(seeds):
        ends = []
        for name in ("pvpo", "grpo"):
            anchors = torch.full((6,), 1 / 8)
            lab = Lab(
                task, torch.zeros(6, 8), build({"name": name}), rate=3.0, seed=seed, group_size=1, anchors=anchors
            )
            ends.append(lab.run(300).reward[-1])
        gains.append(ends[0] - ends[1])
        mine.append(ends[0])
    what = "accuracy after 300 batches of one rollout a prompt, less GRPO's, which cannot move (6 prompts, start 0.125)"
    return found("pvpo", what, gains, above=0, also=(f"it learns (mean {sum(mine) / seeds:.2f})", min(mine) > 0.9))


def blockwise(seeds: int) -> Finding:
    """An answer, right in 2 of 5 cases, and a confidence from 0 to 1 that is mostly high; its exact credit is known."""
    ratios = []
    for seed in range(seeds):
        generator = seeded(seed)

        def rewards(prompts: Tensor, tokens: Tensor) -> Tensor:
            right, confidence = (tokens[:, 0] < 2).float(), tokens[:, 1] / 4
            return torch.stack([right, -((confidence - right) ** 2)], 1)

        task = Task(32, 2, 5, rewards, describe=lambda p, t: {"block_ids": torch.arange(2).expand(t.shape)})
        logits = 0.5 * torch.randn(64, 5, generator=generator)
        logits[1::2] += torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0])  # surer than it is right
        errors = {}
        for baseline in ("outcome", "group"):
            lab = Lab(
                task, logits, build({"name": "blockwise", "baseline": baseline}), rate=0.0, seed=seed, group_size=16
            )
            batch = lab.collect()
            credit = call(lab.algorithm.advantage, batch)[:, 1]
            tokens, prompts = batch.arrays["tokens"], batch.arrays["prompts"]
            chances = logits.softmax(-1)[2 * prompts + 1]
            right = (tokens[:, 0] < 2).float()[:, None]
            mean = (chances * -((torch.arange(5) / 4 - right) ** 2)).sum(1)
            errors[baseline] = (credit - (batch.arrays["reward_parts"][:, 1] - mean)).square().mean().sqrt()
        ratios.append(float(errors["outcome"] / errors["group"]))
    what = "error of the confidence's credit to the exact one, outcome-conditioned baseline / group mean"
    return found("blockwise", what, ratios, below=1)


def partial_pg(seeds: int) -> Finding:
    """Six turns, each with a reward of its own that no other turn touches."""

    def describe(prompts: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        return {"step_ids": torch.arange(6).expand(tokens.shape), "step_rewards": (tokens == 0).float()}

    task = Task(1, 6, 3, lambda prompts, tokens: torch.zeros(len(tokens)), describe=describe)
    ratios, angles = [], []
    for seed in range(seeds):
        logits = 0.5 * torch.randn(6, 3, generator=seeded(seed))
        greedy, full = (
            estimates(task, logits, build({"name": "partial_pg", "mode": mode}), batches=300, seed=seed)
            for mode in ("greedy", "full")
        )
        ratios.append(greedy.variance / full.variance)
        angles.append(cosine(greedy.mean, full.mean))
    also = (f"the means agree (cosine {min(angles):.3f})", min(angles) > 0.97)
    what = "variance of the gradient, each turn with its own reward / with all later ones (6 turns, local rewards)"
    return found("partial_pg", what, ratios, below=1, also=also)
