"""How far stale steps go: clips, caps and damped ratios on TOY-A, with eight gradient steps a batch."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.lab.finding import Finding, found
from benchmarks.lab.gradients import cosine, estimates, true_gradient
from benchmarks.lab.tasks import Task, bandit, toy_a
from benchmarks.lab.trainer import History, Lab, changed
from llmrl.advantages.group import centred, standardised
from llmrl.algorithm import Algorithm
from llmrl.composition import build
from llmrl.objectives.alp import alp as alp_loss
from llmrl.objectives.policy import clipped_surrogate
from llmrl.objectives.reinforce import reinforce
from llmrl.objectives.taypo import taypo2

BATCHES, INNER, RATE = 25, 8, 3.0
STRESS = {"rate": 20.0, "inner": 12}
UNCLIPPED = Algorithm(objective=(reinforce,), advantage=standardised)
PPO_CLIP = Algorithm(objective=(partial(clipped_surrogate, clip_low=0.2, clip_high=0.2),), advantage=standardised)


def stale(algorithm: Algorithm, seed: int, *, rate: float = RATE, inner: int = INNER, **options) -> History:
    """25 batches of TOY-A, `inner` full-batch steps on each."""
    task, logits = toy_a(seed)
    lab = Lab(task, logits, changed(algorithm, epochs=inner, minibatches=1), rate=rate, seed=seed, **options)
    return lab.run(BATCHES)


def held_back(name: str, seeds: int, *, rate: float = 20.0, inner: int = 12, note: str = "", **options) -> Finding:
    """The greatest KL(old || new) of a state over that of steps without a clip, and whether the task is learnt all the same."""
    ratios, ends = [], []
    for seed in range(seeds):
        mine = stale(build({"name": name} | options), seed, rate=rate, inner=inner)
        free = stale(UNCLIPPED, seed, rate=min(rate, 20.0), inner=inner)
        ratios.append(max(mine.furthest) / max(free.furthest))
        ends.append(mine.reward[-1])
    also = (f"final success at least 0.8 (mean {sum(ends) / len(ends):.2f})", min(ends) >= 0.8)
    setting = f"TOY-A, rate {min(rate, 20):g}, {inner} steps a batch{note}"
    what = f"greatest KL(old || new) of a state / REINFORCE's without a clip ({setting})"
    return found(name, what, ratios, below=1, also=also)


def ppo(seeds: int) -> Finding:
    """At the usual rate: the critic stands on the same rate, and would not bear the other."""
    return held_back("ppo", seeds, rate=RATE, inner=INNER, kl_coef=0.0)


def gspo(seeds: int) -> Finding:
    """Its own clip range of 3e-4 stops a table at once; this is the range of the other ratios."""
    return held_back("gspo", seeds, clip_low=0.2, clip_high=0.3, note="; clip 0.2 and 0.3")


def cispo(seeds: int) -> Finding:
    """No token loses its gradient, so it learns faster from stale batches than the clip."""
    return faster("cispo", seeds)


def faster(name: str, seeds: int, **options) -> Finding:
    gains = []
    for seed in range(seeds):
        mine, clip = stale(build({"name": name} | options), seed), stale(PPO_CLIP, seed)
        gains.append(sum(mine.reward) / BATCHES - sum(clip.reward) / BATCHES)
    what = "success averaged over 25 batches, less that of PPO's clip (TOY-A, 8 steps a batch)"
    return found(name, what, gains, above=0)


def sapo(seeds: int) -> Finding:
    return held_back("sapo", seeds)


def gmpo(seeds: int) -> Finding:
    return held_back("gmpo", seeds)


def vespo(seeds: int) -> Finding:
    return held_back("vespo", seeds)


def dppo(seeds: int) -> Finding:
    return held_back("dppo", seeds)


def m2po(seeds: int) -> Finding:
    return held_back("m2po", seeds)


def mhpo(seeds: int) -> Finding:
    """At r = 1 its gradient is 0.265 of PPO's, so it gets the rate that makes up for that."""
    return held_back("mhpo", seeds, rate=20.0 / 0.265, note="; its own rate 75")


def luspo(seeds: int) -> Finding:
    """GSPO's ratio has the gradient 1/L on each of L tokens; times L it pulls every token alike."""
    shares: dict[str, list[float]] = {"luspo": [], "gspo": []}
    for seed in range(seeds):
        for name, kept in shares.items():
            norms = []
            for length in (2, 8):
                task = Task(1, length, 2, lambda prompts, tokens: (tokens[:, 0] == 0).float())
                estimate = estimates(task, torch.zeros(length, 2), build({"name": name}), batches=100, seed=seed)
                norms.append(float(estimate.mean.reshape(length, 2)[0].norm()))
            kept.append(norms[1] / norms[0])
    what = f"pull on the deciding token, answers of 8 / of 2 tokens (GSPO: {sum(shares['gspo']) / seeds:.2f})"
    return found("luspo", what, shares["luspo"], above=0.9, below=1.1)


def dapo(seeds: int) -> Finding:
    """Groups without spread are not trained on; success goes to 1, and GRPO has little left to learn from."""
    gains = []
    for seed in range(seeds):
        shares = []
        for name in ("dapo", "grpo"):
            task, logits = toy_a(seed, success=0.2)
            lab = Lab(task, logits, build({"name": name}), rate=RATE, seed=seed)
            used = []
            for _ in range(60):
                batch = lab.step()
                if batch is not None:
                    used.append(float((batch.arrays["advantages"] != 0).any(1).float().mean()))
            shares.append(sum(used[-20:]) / len(used[-20:]))
        gains.append(shares[0] - shares[1])
    what = "share of trained rollouts with credit in the last 20 batches, less GRPO's (TOY-A)"
    return found("dapo", what, gains, above=0)


def taypo(seeds: int) -> Finding:
    """Exact: every answer counted, gradient-free; the surrogate of first and of second order against J(new) - J(old)."""
    ratios = []
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        rewards = torch.rand(81, generator=generator)
        task = Task(1, 4, 3, lambda prompts, tokens, r=rewards: r[tokens @ torch.tensor([27, 9, 3, 1])])
        prompts, tokens = task.answers()
        states, earned = task.states(prompts, tokens), task.reward(prompts, tokens)
        errors = {0.0: 0.0, 1.0: 0.0}
        for _ in range(20):
            old, shift = (torch.randn(4, 3, generator=generator, dtype=torch.double) for _ in range(2))
            before, after = (x.log_softmax(-1)[states, tokens] for x in (old, old + 0.3 * shift))
            weight = before.sum(1).exp()
            credit = (earned - (weight * earned).sum()).double()[:, None].expand(81, 4)
            truth = float(((after.sum(1).exp() - weight) * earned).sum())
            for eta in errors:
                loss = taypo2(after, before, credit, torch.ones(81, 4, dtype=torch.bool), eta=eta, deviation_clip=None)
                values = loss.values.sum(1) if loss.values.dim() == 2 else loss.values
                errors[eta] += abs(truth + float((weight * values).sum()))
        ratios.append(errors[1.0] / errors[0.0])
    what = "error of the surrogate, second order / first order (every answer counted, logits moved by 0.3)"
    return found("taypo", what, ratios, below=0.5)


def trpo(seeds: int) -> Finding:
    """The KL of every step against its bound; the rule itself measures it over the batch's tokens."""
    largest, gains = [], []
    for seed in range(seeds):
        task, logits = toy_a(seed)
        history = Lab(task, logits, build({"name": "trpo"}), rate=RATE, seed=seed).run(BATCHES)
        largest.append(max(told["trust/kl"] for told in history.told) / 0.01)
        gains.append(history.reward[-1] - history.reward[0])
    what = "greatest KL of a step / its bound of 0.01 (TOY-A)"
    also = (f"success rises (by {min(gains):.2f} or more)", min(gains) > 0)
    return found("trpo", what, largest, below=1.0001, each=True, also=also)


def fixpo(seeds: int) -> Finding:
    """Under stress the clip is passed; the fix-up phase makes the bound hold."""
    bound, held, clipped = 0.05, [], []
    for seed in range(seeds):
        for algorithm, kept in ((build({"name": "fixpo", "bound": bound}), held), (PPO_CLIP, clipped)):
            kept.append(max(stale(algorithm, seed, **STRESS).furthest) / bound)
    what = "greatest KL(old || new) of a state after a batch / the bound of 0.05 (TOY-A, rate 20, 12 steps a batch)"
    also = (f"PPO's clip passes it ({min(clipped):.1f} or more)", min(clipped) > 1)
    return found("fixpo", what, held, below=1.0001, each=True, also=also)


def ppo_max(seeds: int) -> Finding:
    """Rewards a hundred times as large: the normalised ones are the same, plain PPO's step is not."""
    ratios, plain = [], []
    ppo_max = build({"name": "ppo_max", "kl_coef": 0.0})
    ppo = build({"name": "ppo", "kl_coef": 0.0, "advantage": {"whiten": False}})
    for seed in range(seeds):
        task, logits = toy_a(seed, success=0.2)
        for algorithm, kept in ((ppo_max, ratios), (ppo, plain)):
            steps = []
            for factor in (1.0, 100.0):
                scaled = Task(4, 3, 5, lambda prompts, tokens, f=factor, task=task: f * task.reward(prompts, tokens))
                lab = Lab(scaled, logits, changed(algorithm, epochs=1, minibatches=1), rate=RATE, seed=seed)
                lab.step()
                steps.append(float((lab.table.logits - logits).detach().norm()))
            kept.append(steps[1] / steps[0])
    what = f"first step with rewards × 100 / as they are (PPO without whitening: {sum(plain) / len(plain):.0f})"
    return found("ppo_max", what, ratios, above=0.99, below=1.01, each=True)


def arms_off_policy(name: str, **options) -> list[float]:
    """Chances of three arms of reward 1, 0.8, 0 after 400 exact gradients on what (0.05, 0.9, 0.05) has sampled."""
    rewards, behaviour = torch.tensor([1.0, 0.8, 0.0]), torch.tensor([[0.05, 0.9, 0.05]])
    task, _ = bandit(rewards)
    method = changed(build({"name": name} | options), epochs=400)
    lab = Lab(task, behaviour.log(), method, rate=1.0, group_size=20)
    lab.sampled = lambda logits, prompts: torch.tensor([0] + 18 * [1] + [2])[:, None]  # exactly in these shares
    lab.step()
    return lab.table.chances[0].tolist()


def rec(seeds: int) -> Finding:
    mine, bare = arms_off_policy("rec")[0], arms_off_policy("rec", mask="none")[0]
    what = (
        f"chance of the best arm, sampled in 1 of 20, after 400 steps on that batch (start 0.05; unmasked {bare:.3f})"
    )
    return found("rec", what, mine, above=0.05, also=("unmasked it falls below 0.01", bare < 0.01))


def spared(name: str, seeds: int, rate: float = RATE, **options) -> list[float]:
    """Entropy that is left after TOY-A, less that of centred REINFORCE at equal steps, by seed."""
    plain = Algorithm(objective=(reinforce,), advantage=centred)
    gains = []
    for seed in range(seeds):
        mine, other = stale(build({"name": name} | options), seed, rate=rate), stale(plain, seed)
        gains.append(mine.entropy[-1] - other.entropy[-1])
    return gains


ENTROPY_LEFT = "entropy after 25 batches less that of centred REINFORCE at equal steps (TOY-A, 8 steps a batch)"


def opmd(seeds: int) -> Finding:
    """A mean over answers of sums over three tokens: a third of the rate makes the steps equal."""
    return found("opmd", f"{ENTROPY_LEFT}; a third of the rate", spared("opmd", seeds, rate=RATE / 3), above=0)


def asymre(seeds: int) -> Finding:
    return found("asymre", ENTROPY_LEFT, spared("asymre", seeds), above=0)


def red_drop(seeds: int) -> Finding:
    return found("red_drop", ENTROPY_LEFT, spared("red_drop", seeds), above=0)


def red_weight(seeds: int) -> Finding:
    plain = Algorithm(objective=(reinforce,), advantage=centred)
    gains = []
    for seed in range(seeds):
        mine, other = stale(build({"name": "red_weight"}), seed), stale(plain, seed)
        gains.append(sum(mine.reward) / BATCHES - sum(other.reward) / BATCHES)
    what = "success averaged over 25 batches, less that of centred REINFORCE at equal steps (TOY-A, 8 steps a batch)"
    return found("red_weight", what, gains, above=0)


def towards_truth(name: str, seeds: int, **options) -> list[float]:
    """Cosine of the mean gradient to the exact one with a sampler off by N(0, 0.6²) in its logits, less that of the same
    method without its correction.
    """
    gains = []
    for seed in range(seeds):
        task, logits = toy_a(seed)
        exact = true_gradient(task, logits)
        method = changed(build({"name": name} | options), advantage=centred)
        found_at = [
            cosine(estimates(task, logits, a, batches=75, seed=seed, group_size=8, noise=0.6).mean, exact)
            for a in (method, changed(PPO_CLIP, advantage=centred))
        ]
        gains.append(found_at[0] - found_at[1])
    return gains


MISMATCH = (
    "cosine of the gradient to the exact one, less that without a correction (TOY-A, sampler's logits off by 0.6)"
)


def tis(seeds: int) -> Finding:
    return found(
        "tis", f"{MISMATCH}; level sequence, cap 3", towards_truth("tis", seeds, level="sequence", cap=3.0), above=0
    )


def icepop(seeds: int) -> Finding:
    return found("icepop", MISMATCH, towards_truth("icepop", seeds), above=0)


def decoupled_ppo(seeds: int) -> Finding:
    """Rollouts of four batches ago: the clip around the policy of now, against one around the policy that sampled."""
    behaviour = partial(alp_loss, level="token", clip_low=0.2, clip_high=0.2, dual_clip=None)
    naive, gains = Algorithm(objective=(behaviour,), advantage=standardised), []
    for seed in range(seeds):
        mine, other = (stale(a, seed, inner=4, stale=4) for a in (build({"name": "decoupled_ppo"}), naive))
        gains.append(sum(mine.reward) / BATCHES - sum(other.reward) / BATCHES)
    what = "success averaged over 25 batches, less that of a clip around the sampler (TOY-A, rollouts 4 batches old)"
    return found("decoupled_ppo", what, gains, above=0)


def alp(seeds: int) -> Finding:
    """Noise in every training step, on a table's logits as its only layer; the sampler's are off by noise of its own."""
    ratios = []
    for seed in range(seeds):
        task, logits = toy_a(seed)
        ends = []
        for sigma in (0.3, 0.0):
            method = changed(build({"name": "alp"}), perturb=None, epochs=INNER, minibatches=1)
            lab = Lab(task, logits, method, rate=RATE, seed=seed, noise=0.6, perturbed=sigma)
            gaps = []
            for _ in range(BATCHES):
                batch = lab.step()
                now = lab.table.logits.detach().log_softmax(-1)[batch.arrays["states"], batch.arrays["tokens"]]
                gaps.append((now - batch.arrays["rollout_logprobs"]).flatten())
            ends.append(float(torch.cat(gaps).exp().quantile(0.999)))
        ratios.append(ends[0] / ends[1])
    what = "99.9 % quantile of trained / sampled probability, with noise of 0.3 / without (TOY-A, sampler off by 0.6)"
    return found("alp", what, ratios, below=1)
