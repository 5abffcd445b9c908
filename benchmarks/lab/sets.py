"""More than one right answer: how many of them stay alive."""

from __future__ import annotations

from benchmarks.lab.finding import Finding, found
from benchmarks.lab.tasks import t1
from benchmarks.lab.trainer import Lab, changed
from llmrl.composition import build

WHAT = "right answers with probability > 0.02 after 150 batches (of 4), less GRPO's (T1)"


def alive(name: str, seeds: int, *, rate: float = 4.0, tries: int = 1, **options) -> Finding:
    """How many more of T1's four right answers stay alive than under GRPO, mean over prompts, at a like chance to be right
    in so many tries.
    """
    gains, right = [], []
    for seed in range(seeds):
        task, logits = t1(seed)
        counts, ends = [], []
        for method, step in ((build({"name": name} | options), rate), (build({"name": "grpo"}), 4.0)):
            lab = Lab(task, logits, changed(method, epochs=4), rate=step, seed=seed)
            lab.run(150)
            good = lab.table.chances[:, :4]
            ends.append(float((1 - (1 - good.sum(1)) ** tries).mean()))
            counts.append(float((good > 0.02).sum(1).float().mean()))
        gains.append(counts[0] - counts[1])
        right.append(ends[0] - ends[1])
    what = "accuracy" if tries == 1 else f"pass@{tries}"
    also = (f"{what} not lower by 0.05 (mean {sum(right) / seeds:+.3f})", sum(right) / seeds > -0.05)
    at = f"{WHAT}; {rate / 4:g} times the rate" if rate != 4.0 else WHAT
    return found(name, at, gains, above=0, also=also)


def poly_ppo(seeds: int) -> Finding:
    """Its credit is a tenth of a standardised one; the rate makes up for it."""
    return alive("poly_ppo", seeds, rate=40.0)


def dpp_grpo(seeds: int) -> Finding:
    return alive("dpp_grpo", seeds)


def passk(seeds: int) -> Finding:
    """Its credit ends where a set of four is sure to hold a right answer, so it is judged by four tries."""
    return alive("passk", seeds, tries=4)
