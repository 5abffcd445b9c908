"""What an Algorithm asks for: which arrays its parts read, which forward passes make them, what may be left out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from llmrl import catalog
from llmrl.algorithm import BEFORE_UPDATE, STAGES, WITHOUT_ARRAYS, Algorithm, Extra, Part
from llmrl.batch import VOCABULARY, base_name, sources
from llmrl.errors import RecipeError, nearest


class PassPlan(NamedTuple):
    """One forward pass over the batch: 'old' and 'ref' before the updates, 'current' with gradient in each of them."""

    name: str
    arrays: tuple[str, ...]
    why: str


def readers(algorithm: Algorithm) -> Iterator[tuple[str, Part]]:
    """(stage, part) of everything that reads arrays of the rollouts' batch."""
    for stage in STAGES:
        if stage not in WITHOUT_ARRAYS:
            yield from ((stage, part) for part in algorithm.at(stage))
    yield from (("advantage", extra.gate) for extra in algorithm.extra if extra.gate is not None)


def reasons(algorithm: Algorithm) -> dict[str, list[str]]:
    """Array → the parts that name it."""
    found: dict[str, list[str]] = {}
    for _, part in readers(algorithm):
        for name in catalog.inputs_of(part):
            found.setdefault(name, []).append(catalog.name_of(part))
    return found


def everything_named(algorithm: Algorithm) -> set[str]:
    """Every array that some part names, on the rollouts or on a second batch."""
    return required(algorithm) | {n for e in algorithm.extra for part in e.objective for n in catalog.inputs_of(part)}


def required(algorithm: Algorithm) -> set[str]:
    """Every array that the parts name. RecipeError when one is unknown, or not made by the time its part runs."""
    problems: list[str] = []
    for stage, part in readers(algorithm):
        for name in catalog.inputs_of(part):
            if text := _unreadable(algorithm, stage, part, name):
                problems.append(f"algorithm.{stage}: {catalog.name_of(part)} reads {name!r}, {text}")
    for extra in algorithm.extra:
        for part in extra.objective:
            for name in catalog.inputs_of(part):
                if text := _unreadable_beside(algorithm, extra, name):
                    problems.append(f"algorithm.extra: {catalog.name_of(part)} reads {name!r}, {text}")
    if problems:
        raise RecipeError(problems)
    return set(reasons(algorithm))


def _unreadable_beside(algorithm: Algorithm, extra: Extra, name: str) -> str:
    held = {"loss_mask", "lengths", "truncated", "group_ids", "rewards", "token_rewards", "temperatures"}
    if name in ("rewards", "token_rewards"):
        needed = {n: part for part in algorithm.combine for n in catalog.inputs_of(part)}
        other = [n for n in needed if n not in (*held, "reward_parts", "reward_weights")]
        if other:
            part = catalog.name_of(needed[other[0]])
            return (
                f"which has to be made like that of the rollouts, and {part} in algorithm.combine reads {other[0]}, which a "
                "second batch does not have. Leave that part out; a penalty can also be a regularizer, such as kl_k3."
            )
    held |= {"advantages"} if extra.gate is not None else set()
    held |= {"ref_logprobs"} if extra.source == "reference" else set()
    if name not in VOCABULARY:
        return _unknown_array(name)
    current = all(VOCABULARY[source].source == "current" or source in held for source in sources([name]))
    return "" if current and not name.endswith("_kl") else "which a second batch does not have."


def _unknown_array(name: str) -> str:
    return f"which is not in the vocabulary of llmrl/batch.py.{nearest(name, VOCABULARY)}"


def _unreadable(algorithm: Algorithm, stage: str, part: Part, name: str) -> str:
    try:
        made_by = {VOCABULARY[source].source for source in sources([name])}
    except KeyError:
        return _unknown_array(name)
    if "current" in made_by and stage in BEFORE_UPDATE:
        return f"which exists during the update only.{nearest(f'old_{base_name(name)}', VOCABULARY)}"
    if "advantage" in made_by and algorithm.advantage is None:
        return "but there is no advantage stage. Set algorithm.advantage, such as grpo."
    if "prepare" in made_by and not algorithm.prepare:
        return f"but there is no part at algorithm.prepare that writes it. {_writers(name)}"
    if base_name(name) == "anchor_rewards" and algorithm.before is None:
        return "but there are no rollouts ahead of training. Set algorithm.before: {num_samples: 8}."
    return ""


def _writers(name: str) -> str:
    return {
        "entropy_scores": "Set algorithm.prepare: hapo_scores.",
        "penalised": "Set algorithm.prepare: kl_cov_selection.",
    }.get(name, "")


def when(part: Part) -> Literal["ahead", "scored", "credited"]:
    """When a selection runs: on prompts ahead of sampling, after the scoring, or after the credit."""
    names = set(catalog.inputs_of(part))
    made_by = {VOCABULARY[source].source for source in sources(names)}
    if names == {"anchor_rewards"}:
        return "ahead"
    return "credited" if made_by & {"old", "ref", "advantage"} else "scored"


def passes(algorithm: Algorithm, online: bool = True) -> list[PassPlan]:
    """Which forward passes the trainer runs for one batch, in order, and for whom.

    With one update a batch, old_logprobs that only the loss names need no pass: they are logprobs.detach(). A part that
    looks at the mini-batch before its update needs one; for the first mini-batch it is that of 'old'.
    online: whether rollouts are sampled; RecipeError when a part needs the sampler's log-probabilities and none are.
    """
    required(algorithm)
    why: dict[str, list[str]] = {}
    early: set[str] = set()
    for stage, part in readers(algorithm):
        for source in sources(catalog.inputs_of(part)):
            if stage == "prepare" and VOCABULARY[source].source == "current":
                source = f"old_{source}"
            why.setdefault(source, []).append(catalog.name_of(part))
            if stage in (*BEFORE_UPDATE, "prepare"):
                early.add(source)
    if not online and "rollout_logprobs" in why:
        asking = ", ".join(dict.fromkeys(why["rollout_logprobs"]))
        raise RecipeError(f"algorithm: {asking} reads rollout_logprobs, which replayed data lacks.")
    made = {array: VOCABULARY[array].source for array in why}
    if "old_logprobs" not in early and algorithm.single_update and not wanted_divergences(algorithm) & {"old_kl"}:
        made.pop("old_logprobs", None)
    plans = []
    for name in ("old", "ref", "current"):
        arrays = {array for array, source in made.items() if source == name}
        if name in ("old", "ref") and f"{name}_kl" in made:  # what the divergence is taken to
            arrays.add(f"{name}_logprobs")
            why.setdefault(f"{name}_logprobs", []).extend(why[f"{name}_kl"])
        if arrays:
            told = (f"{array} for {', '.join(dict.fromkeys(why[array]))}" for array in sorted(arrays))
            plans.append(PassPlan(name, tuple(sorted(arrays)), "; ".join(told)))
    return plans


def wanted_divergences(algorithm: Algorithm) -> set[str]:
    """Which of old_kl and ref_kl some loss part names: their passes keep hidden states."""
    return sources(reasons(algorithm)) & {"old_kl", "ref_kl"}


def droppable(algorithm: Algorithm) -> bool:
    """Whether rows with zero advantage add nothing to the loss, so that they may be left out of the forward pass."""
    needed = any(getattr(catalog.unwrap(part), "needs_zero_advantage_rows", False) for part in algorithm.losses)
    return not needed and all("advantages" in catalog.inputs_of(part) for part in algorithm.losses)


def together(algorithm: Algorithm) -> bool:
    """Whether a prompt's rows have to stand in one micro-batch: some loss part compares them."""
    return any("group_ids" in catalog.inputs_of(part) for part in algorithm.losses)
