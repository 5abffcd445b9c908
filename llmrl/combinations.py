"""Parts that are right by themselves and wrong together, found by name and by what they read, before anything loads."""

from __future__ import annotations

from typing import Any

from llmrl import catalog
from llmrl.algorithm import STAGES, Algorithm, Part

CORRECTIONS = ("importance_weights", "icepop")
# Parts whose `weights` stand on tokens, and objectives whose loss is one number for many tokens: the two do not meet.
WEIGHTING = (*CORRECTIONS, "opsm", "m2po_mask", "clip_cov_selection", "top_entropy_mask", "red_drop", "red_weight")
UNDIVIDED = (
    *("rloo_clip", "gspo", "luspo", "gmpo", "taypo2", "opmd_kimi", "opmd_pairwise"),
    *("p3o", "rebel", "dpo", "bradley_terry"),
)
PENALTIES = ("kl_k1", "kl_k2", "kl_k3", "kl_k3_corrected", "kl_full", "AdaptiveKl")
HEARS_FLAT_GROUPS = ("pvpo", "polychromic", "dpp")
MEASURED_BY = {  # update rule -> the regularizers, any of which it can keep within bounds
    "Trpo": ("kl_old",),
    "Fixpo": ("FixpoPenalty", "SampledFixpoPenalty"),
}


def conflicts(algorithm: Algorithm) -> list[str]:
    """What makes no sense together: what was found, why, and the next move, beginning with the dotted key."""
    rules = (
        _corrected_twice,
        _replaced_early,
        _weighted_whole,
        _kl_twice,
        _unheard,
        _ungated,
        _unmeasured,
        _unstepped,
        _one_memory,
    )
    return [sentence for rule in rules for sentence in rule(algorithm)]


def cautions(algorithm: Algorithm) -> list[str]:
    """What runs, but does something else than its name says."""
    found = []
    if any(_named(part, "kl_k1") and option(part, "kl_coef") for part in algorithm.regularizers):
        found.append(
            "algorithm.regularizers: kl_k1 in the loss holds nothing back: its expected gradient is 0. "
            "Use kl_k2, or kl_in_reward in algorithm.combine."
        )
    if _among(algorithm.regularizers, ("SampledFixpoPenalty",)):
        found.append(
            "algorithm.regularizers: fixpo_sampled estimates the KL from the sampled tokens, so the bound is kept by the "
            "estimate and not by the divergence. The exact one is fixpo."
        )
    for part in algorithm.combine:
        if _named(part, "kl_in_reward") and option(part, "kl_coef") and option(part, "estimator") != "k1":
            found.append(
                f"algorithm.combine: kl_in_reward with {option(part, 'estimator')} has not the gradient of the KL to the "
                "reference; in the reward only k1 has."
            )
    return found


def option(part: Part, name: str) -> Any:
    """What an option of the part is set to."""
    inner = catalog.unwrap(part)
    if hasattr(inner, "apply"):
        return getattr(inner, name)
    while hasattr(part, "func"):
        if name in part.keywords:
            return part.keywords[name]
        part = part.func
    return catalog.options_of(part)[name].default


def _named(part: Part, *names: str) -> bool:
    return catalog.name_of(part) in names


def _among(parts: tuple[Part, ...], names: tuple[str, ...]) -> list[str]:
    return [catalog.name_of(part) for part in parts if _named(part, *names)]


def _corrected_twice(algorithm: Algorithm) -> list[str]:
    shaped = (*algorithm.shaping, *algorithm.prepare)
    corrections = _among(shaped, (*CORRECTIONS, "ratio_to_sampler"))
    aware = [catalog.name_of(p) for p in algorithm.objective if "rollout_logprobs" in catalog.inputs_of(p)]
    found = []
    if len(corrections) > 1:
        found.append(
            f"algorithm.shaping: {' and '.join(corrections)} both weigh by the trainer's over the engine's probability, "
            "which would count twice. Keep one of them."
        )
    if corrections and aware:
        found.append(
            f"algorithm.shaping: {corrections[0]} weighs by the trainer's over the engine's probability, and so does the "
            f"objective {aware[0]}, which reads rollout_logprobs. Leave {corrections[0]} out."
        )
    return found


def _replaced_early(algorithm: Algorithm) -> list[str]:
    return [
        f"algorithm.shaping: {catalog.name_of(part)} stands ahead of {catalog.name_of(behind)}, which would take the engine's "
        "log-probabilities for the trainer's. Put it last."
        for part, behind in zip(algorithm.shaping, algorithm.shaping[1:], strict=False)
        if _named(part, "ratio_to_sampler")
    ] + [
        f"algorithm.diagnostics: {catalog.name_of(reader)} reads the trainer's log-probabilities, which "
        "ratio_to_sampler replaces by the engine's. Take importance_weights instead, or leave the diagnostic out."
        for reader in algorithm.diagnostics
        if "old_logprobs" in catalog.inputs_of(reader) and _among(algorithm.shaping, ("ratio_to_sampler",))
    ]


def _weighted_whole(algorithm: Algorithm) -> list[str]:
    shaped = (*algorithm.select, *algorithm.shaping, *algorithm.prepare)
    weighing = _among(shaped, WEIGHTING)
    weighing += [catalog.name_of(p) for p in shaped if _named(p, "rejection_mask") and option(p, "level") == "token"]
    undivided = _among(algorithm.objective, UNDIVIDED)
    if not (weighing and undivided):
        return []
    stage = next(s for s in ("select", "shaping", "prepare") if _among(algorithm.at(s), tuple(weighing)))
    return [
        f"algorithm.{stage}: {weighing[0]} acts on single tokens, and {undivided[0]} has one loss for a whole answer or a "
        f"pair. Leave {weighing[0]} out, take an objective with a loss a token, such as gspo_token or clipped_surrogate, "
        "or drop whole answers with rejection_mask."
    ]


def _kl_twice(algorithm: Algorithm) -> list[str]:
    places = {"combine": ("kl_in_reward",), "regularizers": PENALTIES}
    found = [
        (stage, catalog.name_of(part))
        for stage, names in places.items()
        for part in algorithm.at(stage)
        if _named(part, *names) and option(part, "kl_coef")
    ]
    if len(found) < 2:
        return []
    listing = " and ".join(f"{name} in {stage}" for stage, name in found)
    return [
        f"algorithm.{found[1][0]}: {listing} both penalise the distance to the reference. "
        "Keep one, or set the kl_coef of the other to 0."
    ]


def _unheard(algorithm: Algorithm) -> list[str]:
    advantage = algorithm.advantage
    if advantage is None or not _named(advantage, *HEARS_FLAT_GROUPS):
        return []
    return [
        f"algorithm.select: dynamic_sampling drops groups with equal rewards, to which {catalog.name_of(advantage)} gives "
        "credit. Leave dynamic_sampling out."
        for _ in _among(algorithm.select, ("dynamic_sampling",))
    ]


def _ungated(algorithm: Algorithm) -> list[str]:
    if not any(extra.gate is not None for extra in algorithm.extra):
        return []
    return [
        "algorithm.select: dynamic_sampling drops the prompts without a right answer, and those are the ones that the gate of "
        "the second batch opens for. Leave dynamic_sampling out."
        for _ in _among(algorithm.select, ("dynamic_sampling",))
    ]


def _unstepped(algorithm: Algorithm) -> list[str]:
    if algorithm.update is None or catalog.name_of(algorithm.update) != "Trpo":
        return []
    waiting = [
        catalog.name_of(p)
        for p in (*algorithm.prepare, *algorithm.losses)
        if p in algorithm.prepare or hasattr(p, "observe")
    ]
    return [
        f"algorithm.update: Trpo makes no steps of the optimizer, and {name} is brought up to date by them. Leave it out, or "
        "take another rule."
        for name in waiting[:1]
    ]


def _one_memory(algorithm: Algorithm) -> list[str]:
    found = []
    for stage in STAGES:
        names = [catalog.name_of(part) for part in algorithm.at(stage) if hasattr(part, "init")]
        found += [
            f"algorithm.{stage}: {name} stands there more than once, and both would share one memory. Keep one."
            for name in dict.fromkeys(names)
            if names.count(name) > 1
        ]
    return found


def _unmeasured(algorithm: Algorithm) -> list[str]:
    rule = catalog.name_of(algorithm.update) if algorithm.update is not None else ""
    needed = MEASURED_BY.get(rule)
    if needed is None or _among(algorithm.regularizers, needed):
        return []
    row = "fixpo" if rule == "Fixpo" else needed[0]
    return [
        f"algorithm.update: {rule} bounds what {needed[0]} measures, and it is not there. Add {row} to the regularizers."
    ]
