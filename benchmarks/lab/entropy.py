"""Entropy of the policy and of its tokens: who keeps it up, and who steers by it."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.lab.finding import Finding, found
from benchmarks.lab.tasks import Task, t1
from benchmarks.lab.trainer import Lab, Steps, changed
from llmrl.algorithm import Algorithm
from llmrl.composition import build

BATCHES, EPOCHS, RATE = 100, 4, 4.0  # T1: step 0.5 on the mean over a prompt's rollouts, of eight prompts


def kept_up(method: Algorithm, control: Algorithm, seeds: int) -> tuple[list[float], list[float]]:
    """(final entropy less the control's, final accuracy less the control's) on T1, by seed."""
    entropy, accuracy = [], []
    for seed in range(seeds):
        task, logits = t1(seed)
        ends = []
        for algorithm in (method, control):
            lab = Lab(task, logits, changed(algorithm, epochs=EPOCHS, minibatches=1), rate=RATE, seed=seed)
            ends.append(lab.run(BATCHES))
        entropy.append(ends[0].entropy[-1] - ends[1].entropy[-1])
        accuracy.append(ends[0].reward[-1] - ends[1].reward[-1])
    return entropy, accuracy


def covariance(name: str, method: Algorithm, control: Algorithm, seeds: int, fraction: str) -> Finding:
    entropy, accuracy = kept_up(method, control, seeds)
    also = (f"accuracy within 0.03 (mean {sum(accuracy) / seeds:+.3f})", abs(sum(accuracy) / seeds) < 0.03)
    what = f"entropy after 100 batches less that of the same loss without the {fraction} (T1)"
    return found(name, what, entropy, above=0, also=also)


def clip_cov(seeds: int) -> Finding:
    wide = {"name": "clip_cov", "fraction": 0.2, "covariance_high": 20.0}
    method, control = build(wide | {"covariance_low": 0.2}), build(wide | {"covariance_low": 19.0})
    return covariance("clip_cov", method, control, seeds, "fifth of detached tokens")


def kl_cov(seeds: int) -> Finding:
    method, control = (build({"name": "kl_cov", "fraction": 0.2, "kl_coef": c}) for c in (1.0, 0.0))
    return covariance("kl_cov", method, control, seeds, "penalty on a fifth of the tokens")


def empg(seeds: int) -> Finding:
    """Two ways on, one certain and one a guess among eight, of equal reward: only the bonus tells them apart."""

    def state(prompts: Tensor, tokens: Tensor) -> Tensor:
        return torch.zeros_like(prompts) if tokens.shape[1] == 0 else 1 + (tokens[:, 0] % 2)

    def describe(prompts: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        return {"step_ids": torch.arange(2).expand(tokens.shape)}

    task = Task(1, 2, 8, lambda prompts, tokens: torch.zeros(len(tokens)), state, describe)
    logits = torch.zeros(3, 8)
    logits[1, 0] = 8.0  # after an even first symbol the second is almost certain
    gains, still = [], []
    for seed in range(seeds):
        for coefficient, kept in ((0.1, gains), (0.0, still)):
            lab = Lab(
                task, logits, build({"name": "empg", "bonus_coef": coefficient}), rate=2.0, seed=seed, group_size=32
            )
            lab.run(60)
            kept.append(float(lab.table.chances[0][::2].sum()) - 0.5)
    what = "chance of the clear branch less 0.5 after 60 batches in which both branches earn the same"
    return found("empg", what, gains, above=0, also=("without the bonus it stays", max(map(abs, still)) < 1e-6))


def hapo(seeds: int) -> Finding:
    """States from nearly certain to nearly uniform; both ranges are asked about the same steps, those of one range for all."""
    ratios = []
    for seed in range(seeds):
        task, logits = t1(seed)
        logits = logits / 0.7 * torch.linspace(0.2, 2.0, 8)[:, None]
        wide, uniform = (
            changed(build({"name": "hapo", "clip_scale": scale, "beta": 0.0}), epochs=EPOCHS, minibatches=1)
            for scale in (1.0, 0.0)
        )
        lab, clipped = Lab(task, logits, uniform, rate=RATE, seed=seed), [0.0, 0.0]
        for _ in range(40):
            before = lab.table.logits.detach().clone()
            batch = lab.step()
            for place, algorithm in enumerate((wide, uniform) if batch is not None else ()):
                lab.algorithm = algorithm
                clipped[place] += Steps(lab, batch, before).measure(batch)["ratio/clip_fraction"]
        ratios.append(clipped[0] / clipped[1])
    what = "share of tokens past the clip range, ranges by entropy / one range for all (T1, logit scales 0.2 to 2)"
    return found("hapo", what, ratios, below=1)
