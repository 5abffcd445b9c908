"""Losses with a known optimum: exact bandits; and what a divergence to stored answers keeps."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.lab.finding import Finding, found
from benchmarks.lab.tasks import Task, seeded
from benchmarks.lab.trainer import Lab, changed
from llmrl.algorithm import Algorithm
from llmrl.batch import Batch, call
from llmrl.composition import build
from llmrl.objectives.policy import clipped_surrogate

ARMS = 6


def arms(seed: int) -> tuple[Tensor, Tensor]:
    """(logits of the first policy, centred advantages under it) of six arms, in double precision."""
    generator = seeded(seed)
    logits = 0.5 * torch.randn(ARMS, generator=generator, dtype=torch.double)
    credit = torch.randn(ARMS, generator=generator, dtype=torch.double)
    return logits, credit - (logits.softmax(-1) * credit).sum()


def descended(logits: Tensor, loss, rate: float, steps: int) -> Tensor:
    """The logits after plain descent on an exact loss of the log-probabilities."""
    table = logits.clone().requires_grad_()
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(loss(table.log_softmax(-1)), table)
        table = (table - rate * gradient).detach().requires_grad_()
    return table.detach()


def total_variation(p: Tensor, q: Tensor) -> float:
    return float((p - q).abs().sum() / 2)


def one_arm_a_row(logprobs: Tensor, **arrays: Tensor) -> Batch:
    """A batch in which row i is arm i."""
    size = len(logprobs)
    columns = {"logprobs": logprobs} | arrays
    held = {name: x[:, None] if x.is_floating_point() and "rewards" not in name else x for name, x in columns.items()}
    mask = torch.ones(size, 1, dtype=torch.bool)
    return Batch([], held | {"loss_mask": mask, "group_ids": torch.zeros(size, dtype=torch.long)})


def objective_of(algorithm: Algorithm, place: int = 0):
    return algorithm.objective[place]


def tilted(name: str, soft: bool, seed: int, temperature: float = 0.5) -> float:
    """Distance of what a weighted fit of six arms ends in from prior · exp(A / temperature), normalised."""
    logits, credit = arms(seed)
    prior = logits.softmax(-1)
    part = objective_of(build({"name": name, "temperature": temperature}))
    if soft:
        credit = credit - temperature * ((prior.log() + credit / temperature).logsumexp(0))

    def loss(logprobs: Tensor) -> Tensor:
        batch = one_arm_a_row(logprobs, ref_logprobs=prior.log(), advantages=credit)
        return (prior * call(part, batch).values[:, 0]).sum()

    wanted = (prior.log() + credit / temperature).softmax(-1)
    return total_variation(descended(logits, loss, 0.2, 4000).softmax(-1), wanted)


TILT = "distance (total variation) of the optimum from prior · exp(A / 0.5), normalised: six arms, exact gradient"


def apa(seeds: int) -> Finding:
    plain = sum(tilted("apa", False, seed) for seed in range(seeds)) / seeds
    what = f"{TILT}; with log-mean-exp as baseline (with the plain one: {plain:.2f})"
    return found("apa", what, [tilted("apa", True, seed) for seed in range(seeds)], below=1e-3, each=True)


def awr(seeds: int) -> Finding:
    return found("awr", TILT, [tilted("awr", False, seed) for seed in range(seeds)], below=1e-3, each=True)


def pairs_of(count: int) -> Tensor:
    return torch.tensor([[i, j] for i in range(count) for j in range(count) if i != j])


def rebel(seeds: int) -> Finding:
    distances = []
    for seed in range(seeds):
        logits, rewards = arms(seed)
        old = logits.log_softmax(-1)
        part = objective_of(build({"name": "rebel", "eta": 2.0}))

        def loss(logprobs: Tensor, old=old, rewards=rewards, part=part) -> Tensor:
            batch = one_arm_a_row(logprobs, old_logprobs=old, rewards=rewards)
            batch.pairs = pairs_of(ARMS)
            return call(part, batch).values.mean()

        end = descended(logits, loss, 0.5, 500).softmax(-1)
        distances.append(total_variation(end, (old + 2.0 * rewards).softmax(-1)))
    what = "distance (total variation) of the optimum from old · exp(2 r), normalised: all pairs of six arms"
    return found("rebel", what, distances, below=1e-6, each=True)


def dpo(seeds: int) -> Finding:
    """Pairs labelled by Bradley and Terry's law, all of them with their chances."""
    distances = []
    for seed in range(seeds):
        logits, rewards = arms(seed)
        ref = logits.log_softmax(-1)
        part = objective_of(build({"name": "dpo", "beta": 0.5}))
        pairs = pairs_of(ARMS)
        chance = (rewards[pairs[:, 0]] - rewards[pairs[:, 1]]).sigmoid()

        def loss(logprobs: Tensor, ref=ref, part=part, chance=chance, pairs=pairs) -> Tensor:
            batch = one_arm_a_row(logprobs, ref_logprobs=ref)
            batch.pairs = pairs
            return (chance * call(part, batch).values).mean()

        end = descended(logits, loss, 5.0, 4000).softmax(-1)
        distances.append(total_variation(end, (ref + rewards / 0.5).softmax(-1)))
    what = "distance (total variation) of the optimum from reference · exp(r / beta), normalised: labels by the rewards"
    return found("dpo", what, distances, below=1e-3, each=True)


def p3o(seeds: int) -> Finding:
    """A hundred added to both rewards of a pair; PPO without a baseline follows it, as the comparison shows."""
    kept, followed = [], []
    for seed in range(seeds):
        logits, rewards = arms(seed)
        part = objective_of(build({"name": "p3o"}))
        gradients: dict[str, list[Tensor]] = {"p3o": [], "ppo": []}
        for shift in (0.0, 100.0):
            table = logits.clone().requires_grad_()
            batch = one_arm_a_row(
                table.log_softmax(-1),
                old_logprobs=logits.log_softmax(-1),
                ref_logprobs=logits.log_softmax(-1),
                rewards=rewards + shift,
                advantages=rewards + shift,
            )
            batch.pairs = torch.tensor([[0, 1], [2, 3], [4, 5]])
            for name, loss in (("p3o", call(part, batch)), ("ppo", call(clipped_surrogate, batch))):
                (gradient,) = torch.autograd.grad(loss.values.mean(), table, retain_graph=True)
                gradients[name].append(gradient)
        kept.append(float((gradients["p3o"][1] - gradients["p3o"][0]).norm() / gradients["p3o"][0].norm()))
        followed.append(float((gradients["ppo"][1] - gradients["ppo"][0]).norm() / gradients["ppo"][0].norm()))
    what = f"relative change of the gradient when 100 is added to all rewards (PPO without a baseline: {min(followed):.0f})"
    return found("p3o", what, kept, below=1e-10, each=True)


def bradley_terry(seeds: int) -> Finding:
    """Scores fitted to all pairs with their chances are the rewards, up to a constant."""
    errors = []
    for seed in range(seeds):
        _, rewards = arms(seed)
        part, pairs = objective_of(build({"name": "bradley_terry"})), pairs_of(ARMS)
        chance = (rewards[pairs[:, 0]] - rewards[pairs[:, 1]]).sigmoid()
        scores = torch.zeros(ARMS, dtype=torch.double, requires_grad=True)
        for _ in range(2000):
            batch = one_arm_a_row(torch.zeros(ARMS), scores=scores, margins=torch.zeros(ARMS))
            batch.arrays["margins"] = torch.zeros(ARMS)
            batch.pairs = pairs
            (gradient,) = torch.autograd.grad((chance * call(part, batch).values).mean(), scores)
            scores = (scores - 2.0 * gradient).detach().requires_grad_()
        fitted = scores.detach() - scores.detach().mean()
        errors.append(float((fitted - (rewards - rewards.mean())).abs().max()))
    return found(
        "bradley_terry",
        "greatest error of the fitted scores (six answers, labels by their rewards)",
        errors,
        below=1e-3,
        each=True,
    )


def process_reward(seeds: int) -> Finding:
    """A step whose rollouts end well with a chance of p gets a score of p."""
    part, errors = objective_of(build({"name": "process_reward"})), []
    for seed in range(seeds):
        labels = torch.rand(1, 8, generator=seeded(seed), dtype=torch.double)
        scores = torch.zeros(1, 8, dtype=torch.double, requires_grad=True)
        for _ in range(500):
            batch = Batch(
                [], {"scores": scores, "step_labels": labels, "loss_mask": torch.ones(1, 8, dtype=torch.bool)}
            )
            (gradient,) = torch.autograd.grad(call(part, batch).values.sum(), scores)
            scores = (scores - 4.0 * gradient).detach().requires_grad_()
        errors.append(float((scores.detach().sigmoid() - labels).abs().max()))
    return found("process_reward", "greatest error of the fitted scores to soft labels", errors, below=1e-3, each=True)


def dph_rl(seeds: int) -> Finding:
    """Three prompts that the first policy masters, with two right answers each, and five hard ones; all share features."""
    ratios, success = [], []
    for seed in range(seeds):
        generator = seeded(seed)
        features = torch.cat([0.7 * torch.eye(8), torch.ones(8, 1), 0.3 * torch.randn(8, 3, generator=generator)], 1)
        logits = torch.zeros(8, 8)
        logits[:3, :2] = 4.0
        hard = torch.arange(3, 8)

        def reward(prompts: Tensor, tokens: Tensor) -> Tensor:
            return torch.where(prompts < 3, tokens[:, 0] < 2, tokens[:, 0] == prompts % 4 + 3).float()

        divergences, mastered = [], []
        for eta in (1.0, 0.0):
            task = Task(8, 1, 8, reward)
            method = changed(build({"name": "dph_rl", "eta": eta}), select=())
            lab = Lab(task, logits, method, rate=2.0, seed=seed, prompts=hard, features=features)
            first = lab.table.logits.detach().clone()
            easy = torch.arange(3).repeat_interleave(16)
            answers = torch.multinomial(first.softmax(-1)[easy], 1, generator=generator)
            stored = lab.described(easy, answers, first)
            lab.rows = lambda extra, batch, stored=stored: stored
            lab.run(150)
            before, after = first.log_softmax(-1)[:3], lab.table.logits.detach().log_softmax(-1)[:3]
            divergences.append(float((before.exp() * (before - after)).sum(-1).mean()))
            mastered.append(float(lab.table.chances[:3, :2].sum(1).mean()))
        ratios.append(divergences[0] / divergences[1])
        success.append(mastered[0] - mastered[1])
    also = (f"they are mastered no less (mean {sum(success) / seeds:+.2f})", min(success) >= 0)
    what = "KL(first || trained) on mastered prompts, eta = 1 / eta = 0 (linear policy, shared features, hard prompts trained)"
    return found("dph_rl", what, ratios, below=0.2, also=also)
