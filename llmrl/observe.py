"""From a step to its row of metrics and its records: what the rollouts looked like and what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmrl.batch import Batch
from llmrl.evaluation import record
from llmrl.ops.groups import group_spread
from llmrl.training.ranks import Ranks
from llmrl.types import Group


@dataclass(frozen=True)
class Collected:
    """What a step leaves behind. places: (group, rollout) of each row of the batch. seconds: by part of the step."""

    groups: list[Group]
    places: list[tuple[int, int]]
    batch: Batch
    stats: dict[str, float]
    seconds: dict[str, float]


def describe(step: Collected, scorers: Sequence[str], ranks: Ranks) -> dict[str, float]:
    """The step's metrics over all ranks, by name; see docs/monitors.md."""
    total = ranks.sums(counts(step, scorers))
    rows, rollouts = max(total["rows"], 1), max(total["rollouts"], 1)
    out = step.stats | {
        "rollout/length": total["tokens"] / rollouts,
        "rollout/truncated": total["truncated"] / rollouts,
        "rollout/count": total["rollouts"],
        "rollout/dropped": total["rollouts"] - total["rows"],
        "scorer/errors": total["errors"],
        "tokens/generated": total["generated"],
    }
    if "reward" in total and total["rows"]:
        mean = total["reward"] / rows
        spread = max(total["square"] / rows - mean**2, 0.0) ** 0.5
        out |= {"reward/mean": mean, "reward/std": spread, "rollout/no_spread": total["flat"] / rows}
    for name in scorers:
        if total[f"judged {name}"]:
            out[f"reward/{name}"] = total[f"value {name}"] / total[f"judged {name}"]
    if total.get("counted"):
        out["policy/entropy"] = total["surprise"] / total["counted"]
    out |= {f"time/{name}": seconds for name, seconds in step.seconds.items()}
    out["time/step"] = sum(step.seconds.values())
    for name, tokens in (("generate", total["generated"]), ("update", total["tokens"])):
        if name == "update" or "rollout/staleness" not in step.stats:  # time/generate is then what was waited
            out[f"tokens_per_second/{name}"] = tokens / max(step.seconds[name], 1e-9)
    return out


def counts(step: Collected, scorers: Sequence[str]) -> dict[str, float]:
    """Sums over this rank's rollouts that `describe` turns into means. Greedy answers are left out of what is
    said of rollouts."""
    sampled = [(g, i) for g in step.groups for i, r in enumerate(g.rollouts) if not r.probe]
    rollouts = [g.rollouts[i] for g, i in sampled]
    scores = [g.scores[i] for g, i in sampled if g.scores]
    arrays = step.batch.arrays
    out: dict[str, float] = {
        "rollouts": len(rollouts),
        "tokens": sum(len(r.ids) for r in rollouts),
        "truncated": sum(r.truncated for r in rollouts),
        "generated": sum(len(r.ids) for g in step.groups for r in g.rollouts),
        "errors": sum(any(one.error is not None for one in s.values()) for g in step.groups for s in g.scores),
        "rows": len(step.batch),
    }
    if "rewards" in arrays:
        rewards = arrays["rewards"]
        flat = ~group_spread(rewards, arrays["group_ids"])
        out |= {"reward": float(rewards.sum()), "square": float((rewards**2).sum()), "flat": int(flat.sum())}
    for name in scorers:
        values = [s[name].value for s in scores if s[name].value is not None]
        out |= {f"value {name}": sum(values), f"judged {name}": len(values)}
    if "rollout_logprobs" in arrays:  # the mean surprise of sampled tokens is an unbiased estimate of the entropy
        out["surprise"] = -float(arrays["rollout_logprobs"][arrays["loss_mask"]].sum())
        out["counted"] = int(arrays["loss_mask"].sum())
    return out


def records(step: Collected) -> list[dict[str, Any]]:
    """One dict a rollout, dropped ones too, with text, ids, scores with their evidence, reward and credit."""
    row_of = {place: row for row, place in enumerate(step.places)}
    rewards, credit = step.batch.arrays.get("rewards"), step.batch.arrays.get("advantages")
    out = []
    for g, group in enumerate(step.groups):
        for i, rollout in enumerate(group.rollouts):
            row = row_of.get((g, i))
            out.append(
                record(group.prompt, rollout, group.scores[i] if group.scores else {})
                | {
                    "group": g,
                    "logprobs": rollout.logprobs,
                    "version": rollout.version,
                    "kept": row is not None,
                    "reward": None if row is None or rewards is None else float(rewards[row]),
                    "advantage": None if row is None or credit is None else float(credit[row, 0]),
                }
            )
    return out
