"""What is taken off the reward, and by what it is divided: variance and bias of the gradient, and whom it listens to."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.lab.finding import Finding, found
from benchmarks.lab.gradients import cosine, estimates, true_gradient
from benchmarks.lab.tasks import Task, seeded, t1
from benchmarks.lab.trainer import Lab, changed
from llmrl.advantages.group import centred
from llmrl.algorithm import Algorithm
from llmrl.composition import build
from llmrl.objectives.reinforce import reinforce as likelihood_ratio

BATCHES = 300  # of rollouts, for one variance


def as_reward(rewards: Tensor) -> Tensor:
    """No baseline at all."""
    return rewards


NO_BASELINE = Algorithm(objective=(likelihood_ratio,), advantage=as_reward, reduce="sequence_sum")
CENTRED = Algorithm(objective=(likelihood_ratio,), advantage=centred, reduce="sequence_sum")


def variance_without(name: str, seeds: int, **options) -> list[float]:
    """Gradient variance of a method over that of the bare reward, on the same rollouts of T1, by seed."""
    method = build({"name": name} | options)
    ratios = []
    for seed in range(seeds):
        task, logits = t1(seed)
        of = [estimates(task, logits, a, batches=BATCHES, seed=seed).variance for a in (method, NO_BASELINE)]
        ratios.append(of[0] / of[1])
    return ratios


def reinforce(seeds: int) -> Finding:
    what = "variance of the gradient with the moving mean as baseline / without one (T1, fixed policy)"
    return found("reinforce", what, variance_without("reinforce", seeds), below=1)


def remax(seeds: int) -> Finding:
    """The greedy answer's reward is 0 or 1, so its baseline is far from the best one where it is wrong."""
    ratios = []
    for seed in range(seeds):
        task, logits = t1(seed)
        logits[:, :4] += 2.5  # right in most cases: the greedy answer too
        method = build({"name": "remax", "kl_coef": 0.0})
        of = [estimates(task, logits, a, batches=BATCHES, seed=seed).variance for a in (method, NO_BASELINE)]
        ratios.append(of[0] / of[1])
    what = "variance of the gradient with the greedy answer's reward as baseline / without one (T1, success about 0.8)"
    return found("remax", what, ratios, below=1)


def rloo(seeds: int) -> Finding:
    what = "variance of the gradient with the siblings' mean as baseline / without one (T1, fixed policy)"
    return found("rloo", what, variance_without("rloo", seeds, kl_coef=0.0), below=1)


def reinforce_pp(seeds: int) -> Finding:
    ratios = []
    for seed in range(seeds):
        task, logits = t1(seed)
        method = changed(build({"name": "reinforce_pp", "kl_coef": 0.0}), reduce="sequence_sum")
        of = [estimates(task, logits, a, batches=BATCHES, seed=seed).relative_variance for a in (method, NO_BASELINE)]
        ratios.append(of[0] / of[1])
    what = "relative variance of the gradient, whitened over the batch / bare reward (T1, fixed policy)"
    return found("reinforce_pp", what, ratios, below=1)


def prompts_of_all_difficulties(seed: int, prompts: int = 32) -> tuple[Task, Tensor]:
    """Two answers a prompt, the first right with a probability from Beta(3, 3)."""
    torch.manual_seed(seed)
    rates = torch.distributions.Beta(3.0, 3.0).sample((prompts,))
    logits = torch.stack([rates.log(), (1 - rates).log()], 1)
    return Task(prompts, 1, 2, lambda prompts, tokens: (tokens[:, 0] == 0).float()), logits


def relative_variance(name: str, against: Algorithm, seeds: int) -> list[float]:
    """Var / mean² of the gradient of one parameter that raises every first answer: a method's over another's, by seed.

    Every batch has prompts of its own, so that their difficulty is part of the variance.
    """
    ratios = []
    for seed in range(seeds):
        of = []
        for method in (changed(build({"name": name}), reduce="token_mean"), against):
            gradients = []
            for number in range(BATCHES):
                task, logits = prompts_of_all_difficulties(1000 * seed + number)
                got = estimates(task, logits, method, batches=1, warm=0, seed=1000 * seed + number)
                gradients.append(got.mean[::2].sum())
            each = torch.stack(gradients)
            of.append(float(each.var() / each.mean() ** 2))
        ratios.append(of[0] / of[1])
    return ratios


def grpo(seeds: int) -> Finding:
    what = (
        "relative variance of the gradient, divided by the group's deviation / only centred (success from Beta(3, 3))"
    )
    return found("grpo", what, relative_variance("grpo", CENTRED, seeds), below=1)


def bnpo(seeds: int) -> Finding:
    what = "relative variance of the gradient, BNPO / GRPO (32 prompts × 8, success from Beta(3, 3))"
    return found("bnpo", what, relative_variance("bnpo", build({"name": "grpo"}), seeds), below=1)


def dr_grpo(seeds: int) -> Finding:
    gains = []
    for seed in range(seeds):
        rates = torch.linspace(-3.5, 3.5, 16)
        task = Task(16, 1, 2, lambda prompts, tokens: (tokens[:, 0] == 0).float())
        logits = torch.stack([rates, torch.zeros(16)], 1)
        exact = true_gradient(task, logits)
        means = [
            estimates(task, logits, build({"name": name}), batches=2 * BATCHES, seed=seed).mean
            for name in ("dr_grpo", "grpo")
        ]
        gains.append(cosine(means[0], exact) - cosine(means[1], exact))
    what = "cosine of the mean gradient to that of the expected reward, Dr.GRPO less GRPO (success 0.03 to 0.97)"
    return found("dr_grpo", what, gains, above=0)


def long_and_short(seed: int) -> tuple[Task, Tensor]:
    """A first symbol that says how many of eight more are written; the long answers are the better ones."""

    def reward(prompts: Tensor, tokens: Tensor) -> Tensor:
        return torch.where(tokens[:, 0] == 0, 0.25, 0.75) + 0.25 * (tokens[:, 1] == 0)

    def describe(prompts: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        width = torch.where(tokens[:, 0] == 0, 2, 9)
        return {"loss_mask": torch.arange(9) < width[:, None]}

    return Task(4, 9, 2, reward, describe=describe), 0.3 * torch.randn(36, 2, generator=seeded(seed))


def opo(seeds: int) -> Finding:
    ratios = []
    for seed in range(seeds):
        task, logits = long_and_short(seed)
        pair = (changed(build({"name": "opo"}), reduce="sequence_sum"), CENTRED)
        of = [estimates(task, logits, a, batches=BATCHES, seed=seed).variance for a in pair]
        ratios.append(of[0] / of[1])
    what = "variance of the gradient, length-weighted baseline / plain mean (answers of 2 or 9 symbols)"
    return found("opo", what, ratios, below=1)


def maxrl(seeds: int) -> Finding:
    shares = []
    for seed in range(seeds):
        rates = torch.tensor([0.05] * 4 + [0.5] * 4)
        task = Task(8, 1, 2, lambda prompts, tokens: (tokens[:, 0] == 0).float())
        logits = torch.stack([rates.log(), (1 - rates).log()], 1)

        def hard_share(name: str, logits: Tensor = logits, task: Task = task, seed: int = seed) -> float:
            mean = (
                estimates(task, logits, build({"name": name}), batches=BATCHES, seed=seed)
                .mean.reshape(8, 2)
                .norm(dim=1)
            )
            return float(mean[:4].sum() / mean.sum())

        shares.append(hard_share("maxrl") - hard_share("grpo"))
    what = "share of the gradient on prompts of success 0.05, next to as many of 0.5: MaxRL less GRPO"
    return found("maxrl", what, shares, above=0)


def gdpo(seeds: int) -> Finding:
    """(1, 0) and (0, 1) earn the same sum, but the second reward is the rarer."""
    parts = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    task = Task(1, 1, 4, lambda prompts, tokens: parts[tokens[:, 0]])
    shares = []
    for seed in range(seeds):
        lab = Lab(task, torch.zeros(1, 4), build({"name": "gdpo"}), rate=0.0, seed=seed, group_size=64)
        gaps = []
        for _ in range(30):
            batch = lab.credited(lab.collect())
            credit, answers = batch.arrays["advantages"][:, 0], batch.arrays["tokens"][:, 0]
            gaps.append(credit[answers == 2].mean() - credit[answers < 2].mean())
        shares.append(float(torch.stack(gaps).mean()))
    what = "credit of an answer with the rare reward less that with the frequent one; their sums are equal"
    return found("gdpo", what, shares, above=0)


def scalerl(seeds: int) -> Finding:
    shares = []
    for seed in range(seeds):
        task, logits = prompts_of_all_difficulties(seed)
        scales = []
        for factor in (1.0, 100.0):
            scaled = Task(32, 1, 2, lambda prompts, tokens, f=factor: f * (tokens[:, 0] == 0).float())
            scales.append(
                float(estimates(scaled, logits, build({"name": "scalerl"}), batches=20, seed=seed).mean.norm())
            )
        shares.append(scales[1] / scales[0])
    what = "length of the gradient with rewards a hundred times as large / as they are"
    return found("scalerl", what, shares, above=0.99, below=1.01)
